//! Privileges of root: capabilities(7).

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::Needs;

/// What changing files of its own takes who is root, since those may be another user's: reading and replacing them, with their owner.
const OF_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER);

/// What serving files takes besides:
///
/// - FSETID: set-id bits stay where the kernel's rules for the caller have them stay;
/// - MKNOD: devices;
/// - SYS_ADMIN: attributes of symbolic links and special files, which cannot have those of users and have `trusted.` ones. What else it allows, mounts and
///   namespaces above all, is kept away by Landlock and by the filter of system calls.
///
/// Not among them is SYS_RESOURCE, so that quotas hold for those whose files they are.
const OF_FILESYSTEM: CapabilitySet = CapabilitySet::FSETID
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SYS_ADMIN);

/// Capabilities that Linux might have; those it does not have yet are skipped.
const COUNT_MAX: u32 = 64;

/// Returns what a process keeps of its capabilities.
pub fn needed(needs: &Needs) -> CapabilitySet {
    match needs.filesystem {
        true => OF_FILES | OF_FILESYSTEM,
        false => OF_FILES,
    }
}

/// Gives up all of this thread's capabilities but some, for good: no program that it runs has them either.
///
/// # Errors
///
/// What capset(2) gives.
pub fn drop_all_but(kept: CapabilitySet) -> io::Result<()> {
    set_no_new_privs(true)?;
    // Without SETPCAP, or with nothing in it, the bounding set stays; no_new_privs says the same of programs.
    for number in 0..COUNT_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(one) && remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
    // Kernels before 4.3 have none.
    let _ = clear_ambient_capability_set();
    let sets = capabilities(None)?;
    if kept.contains(sets.permitted) && sets.inheritable.is_empty() {
        // A service manager's filter may refuse the call that would change nothing.
        return Ok(());
    }
    let fewer = CapabilitySets {
        effective: sets.effective & kept,
        permitted: sets.permitted & kept,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, fewer)?)
}

/// Says what this thread has, as /proc/PID/status does.
pub fn describe() -> String {
    capabilities(None).map_or_else(
        |error| format!("unknown ({error})"),
        |sets| format!("{:x}", sets.effective.bits()),
    )
}
