//! How much memory there is, and how much of it this process may have (cgroups(7)).

use std::{fs, path::Path};

const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns the memory of the machine, in bytes.
pub fn total() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// Returns the least that a cgroup of this process has as its limit, in bytes; nothing where none is limited, or where that cannot be read.
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    limit_in(&groups, |file| fs::read_to_string(Path::new(CGROUPS).join(file)).ok())
}

/// Looks for limits of the groups that /proc/PID/cgroup names, by reading files of the cgroup filesystem, whatever version it has.
fn limit_in(groups: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let files = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("", path) => Some(("", path, "memory.max")),
            (controllers, path) => {
                let has_memory = controllers.split(',').any(|controller| controller == "memory");
                has_memory.then_some(("memory", path, "memory.limit_in_bytes"))
            }
        }
    });
    let limits = files.flat_map(|(root, path, file)| {
        // The group, and those that it is in.
        let above = Path::new(path).ancestors();
        above
            .filter_map(|group| {
                let group = group.to_str()?.trim_matches('/');
                // "max" is no number.
                read(
                    &format!("{root}/{group}/{file}")
                        .trim_start_matches('/')
                        .replace("//", "/"),
                )?
                .trim()
                .parse()
                .ok()
            })
            .collect::<Vec<u64>>()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit_with(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        limit_in(groups, |wanted| {
            let (_, content) = files.iter().find(|(file, _)| *file == wanted)?;
            Some((*content).to_owned())
        })
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_counts() {
        let files = [
            ("a/b/memory.max", "max\n"),
            ("a/memory.max", "300\n"),
            ("memory/c/memory.limit_in_bytes", "200\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(limit_with("0::/a/b\n", &files), Some(300));
        assert_eq!(limit_with("4:cpu,memory:/c\n1:cpu:/\n0::/\n", &files), Some(200));
        assert_eq!(limit_with("4:memory:/\n", &files), Some(9_223_372_036_854_771_712));
        assert_eq!(limit_with("0::/\n", &files), None);
        assert_eq!(limit_with("nonsense\n0\n", &files), None);
    }

    #[test]
    fn a_machine_has_memory() {
        assert!(total() > 1 << 20);
    }
}
