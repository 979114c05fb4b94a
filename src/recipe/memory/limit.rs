//! How much memory the machine has left for a run.
//!
//! Owns reading it: what Linux calls available (`MemAvailable` of proc(5)), or less where a
//! control group allows less (cgroups(7), both versions; of what a group uses, files that could
//! be dropped are not counted). [`VARIABLE`] takes the place of both, for people who know
//! better and for tests.

use std::env;
use std::path::Path;

use fs_err as fs;

use crate::diagnose::Diagnose;

/// Says how much a run may take: `24GiB`, a number of bytes, or `unlimited`.
pub const VARIABLE: &str = "HEIRLOOM_MEMORY";

/// The word for no limit.
const UNLIMITED: &str = "unlimited";

/// Units of [`VARIABLE`], longest first.
const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

/// 2^64: more than a number of bytes can be.
const MOST_BYTES: f64 = 18_446_744_073_709_551_616.0;

/// What there is for a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes.
    pub bytes: u64,
    /// Who says so.
    pub by: By,
}

/// Who says how much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The system.
    Machine,
    /// A control group: a container or a job scheduler.
    ControlGroup,
    /// The environment.
    Variable,
}

/// The variable cannot be understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{VARIABLE}` is `{value}`, which is no amount of memory")]
pub struct LimitError {
    /// What it says.
    value: String,
}

impl Diagnose for LimitError {
    fn hint(&self) -> Option<String> {
        Some(format!("write `24GiB`, a number of bytes or `{UNLIMITED}`, or unset it"))
    }
}

/// What there is; `None` where that is not known, or does not matter.
pub fn read() -> Result<Option<Limit>, LimitError> {
    match env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        Some(value) => parse(&value.to_string_lossy()),
        None => Ok(of_system(Path::new("/"))),
    }
}

fn parse(value: &str) -> Result<Option<Limit>, LimitError> {
    let word = value.trim().to_ascii_lowercase();
    if word == UNLIMITED {
        return Ok(None);
    }
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((word.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((&word, 1));
    let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let bytes = number.map(|number| number * unit as f64).filter(|bytes| *bytes < MOST_BYTES);
    let bytes = bytes.ok_or_else(|| LimitError { value: value.to_owned() })? as u64;
    Ok(Some(Limit { bytes, by: By::Variable }))
}

/// What the system below `root` says.
fn of_system(root: &Path) -> Option<Limit> {
    let machine = of_machine(root).map(|bytes| Limit { bytes, by: By::Machine });
    let group = of_groups(root).map(|bytes| Limit { bytes, by: By::ControlGroup });
    machine.into_iter().chain(group).min_by_key(|limit| limit.bytes)
}

fn of_machine(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The least that any control group above this process has left.
fn of_groups(root: &Path) -> Option<u64> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let mut least = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (mount, names) = match controllers {
            "" => ("sys/fs/cgroup", VERSION_2),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", VERSION_1)
            }
            _ => continue,
        };
        let mount = root.join(mount);
        // In a container the path may be that of the host: the group is the mount itself.
        let folder = mount.join(path.trim_start_matches('/'));
        let groups = folder.ancestors().take_while(|group| group.starts_with(&mount));
        least = groups.filter_map(|group| left(group, &names)).chain(least).min();
    }
    least
}

/// Files of a control group: its limit, what it uses, and the line of `memory.stat` with files
/// that could be dropped.
type Names = [&'static str; 3];
const VERSION_1: Names = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];
const VERSION_2: Names = ["memory.max", "memory.current", "inactive_file "];

fn left(group: &Path, [limit, used, dropped]: &Names) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    // `max` is no number: there is no limit.
    let (limit, used) = (number(limit)?, number(used)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix(dropped)?.trim().parse().ok());
    Some(limit.saturating_sub(used.saturating_sub(files.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MACHINE: (&str, &str) = ("proc/meminfo", "MemTotal: 90 kB\nMemAvailable:   64 kB\n");

    fn limit(bytes: u64, by: By) -> Option<Limit> {
        Some(Limit { bytes, by })
    }

    #[test]
    fn the_machine_says_what_is_available() {
        assert_eq!(of_system(system(&[MACHINE]).path()), limit(65536, By::Machine));
        assert_eq!(of_system(system(&[]).path()), None);
        let odd = [("proc/meminfo", "MemAvailable: many kB\n")];
        assert_eq!(of_system(system(&odd).path()), None);
    }

    #[test]
    fn a_control_group_may_allow_less() {
        let files = [
            MACHINE,
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/b/memory.current", "10\n"),
            ("sys/fs/cgroup/a/memory.max", "1000\n"),
            ("sys/fs/cgroup/a/memory.current", "600\n"),
            ("sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 150\n"),
        ];
        assert_eq!(of_system(system(&files).path()), limit(550, By::ControlGroup));
    }

    #[test]
    fn so_may_one_of_the_first_version_seen_from_a_container() {
        let files = [
            MACHINE,
            ("proc/self/cgroup", "4:cpu,memory:/docker/abc\n1:cpu:/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "2500\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100\n"),
        ];
        assert_eq!(of_system(system(&files).path()), limit(0, By::ControlGroup));
    }

    #[test]
    fn a_path_that_leads_out_of_the_groups_reads_nothing_else() {
        let files = [MACHINE, ("proc/self/cgroup", "0::/../../../outside\nodd\n0:\n")];
        assert_eq!(of_system(system(&files).path()), limit(65536, By::Machine));
    }

    #[test]
    fn amounts_have_units() {
        for (text, bytes) in [
            ("1000", 1000),
            ("24GiB", 24 << 30),
            (" 1.5 gib ", 3 << 29),
            ("2MB", 2_000_000),
            ("7b", 7),
        ] {
            assert_eq!(parse(text), Ok(limit(bytes, By::Variable)), "{text}");
        }
        assert_eq!(parse("unlimited"), Ok(None));
        for text in ["much", "-1GiB", "1e30", "1e999", "GiB", "nan", "1 GiB 2"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
