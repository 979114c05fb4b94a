//! Columns of texts, lists of texts and instants, however a writer encoded them.
//!
//! Owns taking single values out of them and answering one question about every value at the
//! price of answering it once for each distinct one. Types that mean something else are not
//! taken: whoever asks gets `None`.

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, ListArray, StringArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Int32Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use jiff::Timestamp;

/// Distinct values that are remembered at a time; consent columns have a handful.
const REMEMBERED: usize = 16;

/// A column of texts.
#[derive(Clone, Debug)]
pub(super) enum Texts {
    Plain(StringArray),
    Coded(DictionaryArray<Int32Type>),
}

impl Texts {
    pub(super) fn new(column: &ArrayRef) -> Option<Self> {
        let is_text = |found: &DataType| {
            matches!(found, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        };
        match column.data_type() {
            DataType::Dictionary(_, values) if is_text(values) => {
                let coded =
                    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
                let column = cast(column, &coded).ok()?;
                // The values are texts by the cast, so that looking at them later cannot fail.
                column.as_dictionary_opt::<Int32Type>().cloned().map(Self::Coded)
            }
            found if is_text(found) => {
                let column = cast(column, &DataType::Utf8).ok()?;
                column.as_string_opt::<i32>().cloned().map(Self::Plain)
            }
            _ => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Plain(texts) => texts.len(),
            Self::Coded(texts) => texts.len(),
        }
    }

    /// The text at `index`, unless it is null or not there.
    pub(super) fn get(&self, index: usize) -> Option<&str> {
        match self {
            Self::Plain(texts) => at(texts, index),
            Self::Coded(texts) => at(texts.values().as_string_opt::<i32>()?, code(texts, index)?),
        }
    }

    /// The answer for every text from `first` to before `end`.
    pub(super) fn ask<A: Copy>(
        &self,
        first: usize,
        end: usize,
        question: impl Fn(&str) -> A,
    ) -> Vec<Option<A>> {
        let rows = first..end.min(self.len());
        match self {
            Self::Plain(texts) => {
                let mut memory = Memory::default();
                rows.map(|row| Some(memory.recall(at(texts, row)?, &question))).collect()
            }
            Self::Coded(texts) => {
                let Some(values) = texts.values().as_string_opt::<i32>() else {
                    return vec![None; rows.len()];
                };
                let answers: Vec<Option<A>> =
                    values.iter().map(|value| value.map(&question)).collect();
                rows.map(|row| answers.get(code(texts, row)?).copied().flatten()).collect()
            }
        }
    }
}

fn at(texts: &StringArray, index: usize) -> Option<&str> {
    (index < texts.len() && texts.is_valid(index)).then(|| texts.value(index))
}

fn code(texts: &DictionaryArray<Int32Type>, index: usize) -> Option<usize> {
    let keys = texts.keys();
    (index < keys.len() && keys.is_valid(index)).then(|| usize::try_from(keys.value(index)).ok())?
}

/// The last few answers, with the texts that they answer.
struct Memory<'t, A> {
    answers: Vec<(&'t str, A)>,
    /// Who is forgotten next.
    oldest: usize,
}

impl<A> Default for Memory<'_, A> {
    fn default() -> Self {
        Self { answers: Vec::with_capacity(REMEMBERED), oldest: 0 }
    }
}

impl<'t, A: Copy> Memory<'t, A> {
    fn recall(&mut self, text: &'t str, question: impl Fn(&str) -> A) -> A {
        if let Some((_, answer)) = self.answers.iter().find(|(known, _)| *known == text) {
            return *answer;
        }
        let answer = question(text);
        match self.answers.get_mut(self.oldest) {
            Some(place) => *place = (text, answer),
            None => self.answers.push((text, answer)),
        }
        self.oldest = (self.oldest + 1) % REMEMBERED;
        answer
    }
}

/// A column of lists of texts. A null among the texts of a list is left out.
#[derive(Clone, Debug)]
pub(super) struct Lists {
    lists: ListArray,
    texts: Texts,
}

impl Lists {
    pub(super) fn new(column: &ArrayRef) -> Option<Self> {
        let column = match column.data_type() {
            DataType::LargeList(item) => {
                let item = Field::new_list_field(item.data_type().clone(), true);
                cast(column, &DataType::List(item.into())).ok()?
            }
            _ => column.clone(),
        };
        let lists = column.as_list_opt::<i32>()?.clone();
        let texts = Texts::new(lists.values())?;
        Some(Self { lists, texts })
    }

    fn bounds(&self, row: usize) -> Option<(usize, usize)> {
        let offsets = self.lists.value_offsets();
        let (start, end) = (*offsets.get(row)?, *offsets.get(row + 1)?);
        Some((usize::try_from(start).ok()?, usize::try_from(end).ok()?))
    }

    /// The texts of a row, unless its list is null or not there.
    pub(super) fn get(&self, row: usize) -> Option<Vec<&str>> {
        let (start, end) = self.bounds(row).filter(|_| self.lists.is_valid(row))?;
        Some((start..end).filter_map(|index| self.texts.get(index)).collect())
    }

    /// For every row, the bits of all its texts.
    pub(super) fn bits(&self, bits: impl Fn(&str) -> u64) -> Vec<Option<u64>> {
        let rows = self.lists.len();
        let (first, end) = match (self.bounds(0), self.bounds(rows.wrapping_sub(1))) {
            (Some((first, _)), Some((_, end))) => (first, end),
            _ => (0, 0),
        };
        let texts = self.texts.ask(first, end, bits);
        let row = |row| {
            let (start, end) = self.bounds(row).filter(|_| self.lists.is_valid(row))?;
            let texts = texts.get(start - first..end - first)?;
            Some(texts.iter().flatten().fold(0, |all, bits| all | bits))
        };
        (0..rows).map(row).collect()
    }
}

/// A column of instants.
#[derive(Clone, Debug)]
pub(super) struct Instants {
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
    nanoseconds: i128,
}

impl Instants {
    /// Without a zone nobody can tell which instant is meant.
    pub(super) fn new(column: &ArrayRef) -> Option<Self> {
        let DataType::Timestamp(unit, Some(_)) = column.data_type() else { return None };
        let values = match unit {
            TimeUnit::Second => values::<TimestampSecondType>(column),
            TimeUnit::Millisecond => values::<TimestampMillisecondType>(column),
            TimeUnit::Microsecond => values::<TimestampMicrosecondType>(column),
            TimeUnit::Nanosecond => values::<TimestampNanosecondType>(column),
        }?;
        let nulls = column.nulls().cloned();
        Some(Self { values, nulls, nanoseconds: nanoseconds(*unit) })
    }

    fn value(&self, row: usize) -> Option<i64> {
        let value = *self.values.get(row)?;
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)).then_some(value)
    }

    /// The instant of a row, unless it is null or not there.
    pub(super) fn get(&self, row: usize) -> Option<Timestamp> {
        self.value(row).map(|value| instant(value, self.nanoseconds))
    }

    /// Whether the instant of a row is `limit` or before it.
    pub(super) fn is_by(&self, row: usize, limit: &Limit) -> Option<bool> {
        self.value(row).map(|value| limit.holds(value, self.nanoseconds))
    }
}

fn values<T: ArrowPrimitiveType<Native = i64>>(column: &ArrayRef) -> Option<ScalarBuffer<i64>> {
    column.as_primitive_opt::<T>().map(|values| values.values().clone())
}

/// Nanoseconds of a unit.
pub(super) fn nanoseconds(unit: TimeUnit) -> i128 {
    match unit {
        TimeUnit::Second => 1_000_000_000,
        TimeUnit::Millisecond => 1_000_000,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1,
    }
}

/// An instant beyond the calendar is the calendar's end, so that comparisons still hold.
fn instant(value: i64, nanoseconds: i128) -> Timestamp {
    let ends = if value < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_nanosecond(i128::from(value) * nanoseconds).unwrap_or(ends)
}

/// An instant that others are compared with, without making instants of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit(i128);

impl Limit {
    pub(super) fn new(limit: Timestamp) -> Self {
        // Whatever lies beyond the calendar counts as its end.
        Self(if limit == Timestamp::MAX { i128::MAX } else { limit.as_nanosecond() })
    }

    /// Whether an instant in units of so many nanoseconds is the limit or before it.
    pub(super) fn holds(self, value: i64, nanoseconds: i128) -> bool {
        i128::from(value) * nanoseconds <= self.0
    }
}

#[cfg(test)]
#[path = "texts_tests.rs"]
mod tests;
