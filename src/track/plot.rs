//! A diagram of the loss for a terminal, in letters of braille: each is two dots wide and four
//! high.

use std::fmt::Write as _;

/// Letters across and down.
const WIDTH: usize = 64;
const HEIGHT: usize = 10;

/// Dots of a letter.
const ACROSS: usize = 2;
const DOWN: usize = 4;

/// The bit of each dot of a letter of braille (U+2800), by column and row.
const DOTS: [[u32; DOWN]; ACROSS] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// A line through points, whose first coordinates do not fall; nothing where fewer than two are
/// finite.
pub(super) fn plot(name: &str, points: &[(u64, f64)]) -> Option<String> {
    let points: Vec<_> = points.iter().filter(|(_, value)| value.is_finite()).copied().collect();
    let [(first, _), .., (last, _)] = points.as_slice() else { return None };
    let (first, last) = (*first, *last);
    let columns = columns(&points, first, last);
    let values = || columns.iter().flatten();
    let (low, high) = values()
        .fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
    let letters = draw(&columns, low, high);
    let label = |value: f64| format!("{value:.4}");
    let margin = label(high).len().max(label(low).len());
    let mut text = format!("{name}\n");
    for (row, letters) in letters.iter().enumerate() {
        let label = match row {
            0 => label(high),
            _ if row + 1 == HEIGHT => label(low),
            _ => String::new(),
        };
        let line: String =
            letters.iter().filter_map(|bits| char::from_u32(0x2800 + bits)).collect();
        let line = line.trim_end_matches('\u{2800}');
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{label:>margin$} ┤{line}");
    }
    let axis = format!("step {first}");
    let rest = WIDTH.saturating_sub(axis.len());
    let _ = write!(text, "{:>margin$} └{axis}{last:>rest$}", "");
    Some(text)
}

/// The mean of the points of each column of dots; nothing where there is none.
fn columns(points: &[(u64, f64)], first: u64, last: u64) -> Vec<Option<f64>> {
    let width = WIDTH * ACROSS;
    let mut sums = vec![(0.0, 0u64); width];
    let span = (last - first).max(1) as f64;
    for (step, value) in points {
        let place = ((step - first) as f64 / span * (width - 1) as f64).round() as usize;
        if let Some((sum, count)) = sums.get_mut(place) {
            *sum += value;
            *count += 1;
        }
    }
    sums.into_iter().map(|(sum, count)| (count > 0).then(|| sum / count as f64)).collect()
}

/// Bits of every letter, from the top.
fn draw(columns: &[Option<f64>], low: f64, high: f64) -> Vec<Vec<u32>> {
    let bottom = (HEIGHT * DOWN - 1) as f64;
    let span = if high > low { high - low } else { 1.0 };
    let row = |value: f64| ((high - value) / span * bottom).round() as usize;
    let mut letters = vec![vec![0; WIDTH]; HEIGHT];
    let mut before: Option<usize> = None;
    for (column, value) in columns.iter().enumerate() {
        let Some(here) = value.map(row) else { continue };
        // A steep line has no gaps.
        let (from, to) = match before {
            Some(before) if before < here => (before + 1, here),
            Some(before) if before > here => (here, before - 1),
            _ => (here, here),
        };
        before = Some(here);
        for dot in from..=to {
            let bit = DOTS.get(column % ACROSS).and_then(|rows| rows.get(dot % DOWN));
            let letter = letters.get_mut(dot / DOWN).and_then(|row| row.get_mut(column / ACROSS));
            if let Some((letter, bit)) = letter.zip(bit) {
                *letter |= bit;
            }
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_line_falls_from_the_first_corner_to_the_last() {
        let points: Vec<(u64, f64)> =
            (1..=200).map(|step| (step, 3.0 - step as f64 / 100.0)).collect();
        let text = plot("loss", &points).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), HEIGHT + 2);
        assert_eq!(lines[0], "loss");
        // Top left, bottom right, and the two values there.
        assert!(lines[1].starts_with("2.9900 ┤⠉") || lines[1].starts_with("2.9850 ┤"), "{text}");
        assert!(lines[HEIGHT].starts_with("1.00") && lines[HEIGHT].ends_with('⣀'), "{text}");
        let first_dot = |line: &str| line.chars().skip(8).position(|c| c != '\u{2800}').unwrap();
        let starts: Vec<usize> = lines[1..=HEIGHT].iter().map(|line| first_dot(line)).collect();
        assert!(starts.is_sorted(), "{text}");
        assert!(lines[HEIGHT + 1].contains("└step 1") && lines[HEIGHT + 1].ends_with("200"));
        assert_eq!(lines[HEIGHT + 1].chars().count(), 8 + WIDTH);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        assert_eq!(plot("loss", &[]), None);
        assert_eq!(plot("loss", &[(1, 2.0)]), None);
        assert_eq!(plot("loss", &[(1, f64::NAN), (2, 2.0), (3, f64::INFINITY)]), None);
        let flat = plot("loss", &[(1, 2.0), (2, f64::NAN), (3, 2.0)]).unwrap();
        assert!(flat.contains("2.0000"), "{flat}");
    }
}
