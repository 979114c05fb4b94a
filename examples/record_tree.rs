//! Makes a record tree of many rows, and says what it took:
//!
//! ```text
//! cargo run --release --example record_tree -- FOLDER ROWS
//! ```
//!
//! `FOLDER` gets the files that a run folder has. Every tenth row is not used; contents are
//! the rows' numbers.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use heirloom::dataset::sample::Sample;
use heirloom::files::hex;
use heirloom::provenance::tree::{Key, Row, TreeWriter, record_digest};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(folder), Some(rows)) = (words.next(), words.next()) else {
        return Err("say which folder and how many rows".into());
    };
    let rows: u64 = rows.parse()?;
    fs_err::create_dir_all(&folder)?;
    let began = Instant::now();
    let mut writer = TreeWriter::new(Path::new(&folder), Key::random()?)?;
    for row in 0..rows {
        let record_id = format!("0198f2c0-5d2e-7aa0-8c4e-{row:012}");
        writer.add(&Row {
            record_id: &record_id,
            subject: (row % 2 == 0).then_some([row as u8; 32]),
            salt: None,
            digest: Some(record_digest(&Sample::Text(row.to_string()))?),
            left_out: (row % 10 == 9).then_some("expired"),
        })?;
    }
    let added = began.elapsed();
    let commitment = writer.finish()?;
    let all = began.elapsed();
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("VmHWM: unknown");
    let told = format!(
        "{} leaves, root {}\nadding {:.1} s, in all {:.1} s\n{peak}\n",
        commitment.size,
        hex(&commitment.root),
        added.as_secs_f64(),
        all.as_secs_f64(),
    );
    std::io::Write::write_all(&mut std::io::stdout(), told.as_bytes())?;
    Ok(())
}
