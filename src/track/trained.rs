//! The table of what is trained, for people.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};

use crate::diagnose::grouped;

/// Weights by kind: names that differ in numbers alone are one kind. `frozen` is what is not
/// trained.
pub fn table(trained: &[(&str, Vec<i64>)], frozen: u64) -> String {
    let mut kinds: BTreeMap<(String, Vec<i64>), u64> = BTreeMap::new();
    for (name, shape) in trained {
        *kinds.entry((kind(name), shape.clone())).or_default() += 1;
    }
    let numel = |shape: &[i64]| shape.iter().map(|size| size.unsigned_abs()).product::<u64>();
    let total: u64 = kinds.iter().map(|((_, shape), count)| numel(shape) * count).sum();
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["trained", "shape", "number", "parameters"]);
    for ((kind, shape), count) in &kinds {
        let sizes: Vec<String> = shape.iter().map(i64::to_string).collect();
        let parameters = grouped(numel(shape) * count);
        table.add_row([kind.clone(), sizes.join(" × "), grouped(*count), parameters]);
    }
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let share = 100.0 * total as f64 / (total + frozen).max(1) as f64;
    let (trained, all) = (grouped(total), grouped(total + frozen));
    format!("{table}\n{trained} of {all} parameters are trained ({share:.2} %)")
}

/// `model.layers.3.mlp.down_proj.weight` as `model.layers.*.mlp.down_proj.weight`.
fn kind(name: &str) -> String {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.').map(|part| if number(part) { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_numbers_are_one_row() {
        let name = |layer, part| format!("layers.{layer}.q_proj.lora_{part}");
        let names: Vec<(String, Vec<i64>)> = (0..12)
            .flat_map(|layer| [(name(layer, "A"), vec![4, 640]), (name(layer, "B"), vec![640, 4])])
            .collect();
        let trained: Vec<(&str, Vec<i64>)> =
            names.iter().map(|(name, shape)| (name.as_str(), shape.clone())).collect();
        let table = table(&trained, 1_000_000);
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        let cells = |line: usize| lines[line].split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(lines.len(), 4, "{table}");
        assert_eq!(cells(1), "layers.*.q_proj.lora_A 4 × 640 12 30,720");
        assert_eq!(cells(2), "layers.*.q_proj.lora_B 640 × 4 12 30,720");
        assert_eq!(lines[3], "61,440 of 1,061,440 parameters are trained (5.79 %)");
    }
}
