//! Processes: what the kernel tells of others, and what this one gives back to it.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Tells whether a process has a group among its supplementary ones; no if it is gone or not to be seen from here.
///
/// FUSE hands on a caller's user and first group only. The list is in `/proc/PID/status` (proc_pid_status(5)).
pub fn is_in_group(pid: u32, gid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    groups.is_some_and(|groups| groups.split_whitespace().any(|group| group.parse() == Ok(gid)))
}

/// Returns how many descriptors this process may have open; nothing where there is no limit.
pub fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Gives memory back to the kernel that was freed but is kept for later.
pub fn give_back_memory() {
    // Other allocators than glibc's do so by themselves.
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called from any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_groups_are_found_and_others_are_not() {
        let own = rustix::process::getgroups().unwrap();
        for group in own {
            assert!(is_in_group(std::process::id(), group.as_raw()));
        }
        assert!(!is_in_group(std::process::id(), u32::MAX - 7));
        assert!(!is_in_group(u32::MAX, 0));
    }
}
