//! A value of an Arrow column as JSON.
//!
//! Parquet gives every struct of a list the keys of all of them: those that are null were
//! not there when the row was written, and are left out here.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Number, Value};

use super::super::conversation::Json;
use super::Wrong;

/// The value of a row; `None` where it is null. `row` is below the column's length.
///
/// Instants are RFC 3339 texts; those whose column does not say that they are UTC have no
/// zone in their text either.
pub fn value(column: &dyn Array, row: usize) -> Result<Option<Value>, Wrong> {
    if column.is_null(row) {
        return Ok(None);
    }
    macro_rules! integer {
        ($type:ty) => {
            Value::from(column.as_primitive::<$type>().value(row))
        };
    }
    Ok(Some(match column.data_type() {
        DataType::Null => return Ok(None),
        DataType::Boolean => Value::from(column.as_boolean().value(row)),
        DataType::Utf8 => Value::from(column.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Value::from(column.as_string::<i64>().value(row)),
        DataType::Utf8View => Value::from(column.as_string_view().value(row)),
        DataType::Int8 => integer!(Int8Type),
        DataType::Int16 => integer!(Int16Type),
        DataType::Int32 => integer!(Int32Type),
        DataType::Int64 => integer!(Int64Type),
        DataType::UInt8 => integer!(UInt8Type),
        DataType::UInt16 => integer!(UInt16Type),
        DataType::UInt32 => integer!(UInt32Type),
        DataType::UInt64 => integer!(UInt64Type),
        DataType::Float32 => number(column.as_primitive::<Float32Type>().value(row).into())?,
        DataType::Float64 => number(column.as_primitive::<Float64Type>().value(row))?,
        DataType::List(_) => items(column.as_list::<i32>().value(row).as_ref())?,
        DataType::LargeList(_) => items(column.as_list::<i64>().value(row).as_ref())?,
        DataType::FixedSizeList(..) => items(column.as_fixed_size_list().value(row).as_ref())?,
        DataType::Struct(fields) => {
            let mut object = Json::new();
            for (field, column) in fields.iter().zip(column.as_struct().columns()) {
                if let Some(value) = value(column, row)? {
                    object.insert(field.name().clone(), value);
                }
            }
            Value::Object(object)
        }
        DataType::Date32 => {
            let days = i64::from(column.as_primitive::<Date32Type>().value(row));
            let instant = Timestamp::from_second(days.saturating_mul(SECONDS_OF_A_DAY));
            let date = instant.map_err(|_| Wrong::Unreadable)?.to_zoned(TimeZone::UTC).date();
            Value::from(date.to_string())
        }
        DataType::Timestamp(unit, zone) => {
            let instant = match unit {
                TimeUnit::Second => {
                    Timestamp::from_second(column.as_primitive::<TimestampSecondType>().value(row))
                }
                TimeUnit::Millisecond => Timestamp::from_millisecond(
                    column.as_primitive::<TimestampMillisecondType>().value(row),
                ),
                TimeUnit::Microsecond => Timestamp::from_microsecond(
                    column.as_primitive::<TimestampMicrosecondType>().value(row),
                ),
                TimeUnit::Nanosecond => Timestamp::from_nanosecond(
                    column.as_primitive::<TimestampNanosecondType>().value(row).into(),
                ),
            };
            let instant = instant.map_err(|_| Wrong::Unreadable)?;
            Value::from(match zone {
                Some(_) => instant.to_string(),
                None => instant.to_zoned(TimeZone::UTC).datetime().to_string(),
            })
        }
        _ => return Err(Wrong::Unreadable),
    }))
}

const SECONDS_OF_A_DAY: i64 = 86_400;

fn number(number: f64) -> Result<Value, Wrong> {
    Number::from_f64(number).map(Value::Number).ok_or(Wrong::NotFinite)
}

fn items(items: &dyn Array) -> Result<Value, Wrong> {
    let values = (0..items.len()).map(|item| Ok(value(items, item)?.unwrap_or(Value::Null)));
    values.collect::<Result<Vec<Value>, Wrong>>().map(Value::Array)
}
