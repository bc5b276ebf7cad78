//! System calls: seccomp(2).
//!
//! A call that is not allowed gives ENOSYS, as on a kernel that does not have it: a library that tries a new call first takes the older one then, and
//! a mount with data that are not sealed yet is not killed for it. Each is written down in the kernel's log.

use std::{collections::BTreeMap, fmt, io, iter};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};

use super::{Needs, Outside};

/// What every form allows: files by descriptors that are open and names in them, memory without code, threads, waiting.
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_memfd_secret,
    libc::SYS_membarrier,
    // Threads. What a new process could do it is kept from as this one is.
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_pipe2,
    // Rings that were made before, each of which takes a few operations only (`fuse::uring`).
    libc::SYS_io_uring_enter,
    // Sockets that were made before: the log, and the process that unmounts.
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // The rest.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
];

/// Older forms of calls above, which x86-64 still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLD: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLD: &[c_long] = &[];

/// For clients, and for who is one.
const OF_SOCKETS: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_socketpair,
];

/// For names of hosts (getaddrinfo(3)) and TLS, whose libraries may be loaded late.
const OF_NETWORK: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_memfd_create,
];

/// What no PKCS#11 module and no program that gives credentials uses, and an attack might: other processes' memory, mounts and namespaces, the kernel's
/// modules, programs and traces, keys, clocks, the machine; and rings, which would do calls past this filter.
const REFUSED: &[c_long] = &[
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_quotactl,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_personality,
];

/// FUSE_DEV_IOC_CLONE of linux/fuse.h: `_IOR(229, 0, uint32_t)`.
const FUSE_DEV_IOC_CLONE: u64 = 0x8004_e500;

/// The answer to a call that is not allowed.
const REFUSAL: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The bit that x86-64's second convention, x32, has in the numbers of its calls (`__X32_SYSCALL_BIT` of asm/unistd.h).
const X32_BIT: u32 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A program for the kernel that decides on system calls.
pub struct Filter(BpfProgram);

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instructions", self.0.len())
    }
}

impl Filter {
    /// Makes the program.
    ///
    /// # Errors
    ///
    /// An architecture that there is no filter for.
    pub fn new(needs: &Needs) -> Result<Self, BackendError> {
        let refused = SeccompAction::Errno(libc::ENOSYS as u32);
        let (rules, otherwise, then) = if needs.outside >= Outside::ForeignCode {
            (always(REFUSED), SeccompAction::Allow, refused)
        } else {
            (allowed(needs.outside)?, refused, SeccompAction::Allow)
        };
        let filter = SeccompFilter::new(rules, otherwise, then, std::env::consts::ARCH.try_into()?)?;
        let mut program: BpfProgram = filter.try_into()?;
        program.splice(..0, refuse_x32());
        Ok(Filter(program))
    }

    /// Puts it into force for all threads of the process.
    ///
    /// # Errors
    ///
    /// What seccomp(2) gives; ESRCH where a thread has a filter of its own.
    pub fn enter(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.0.len() as libc::c_ushort,
            // Read only, whatever its type says.
            filter: self.0.as_ptr().cast_mut().cast(),
        };
        // Kernels before 5.16 would switch off speculation past stores, which is for processes that run code of others, and costs ciphers much of
        // their speed.
        let flags =
            libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
        // SAFETY: the program and its instructions live through the call, which copies them; the two types of instruction are the same `repr(C)` struct.
        match unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                flags,
                &raw const program,
            )
        } {
            0 => Ok(()),
            // The number of the thread that could not follow.
            1.. => Err(io::Error::from_raw_os_error(libc::ESRCH)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Returns what comes before the rules: other numbers for the same calls are refused, which a list of what is refused would let through. No other
/// architecture has numbers as large.
fn refuse_x32() -> [sock_filter; 3] {
    let instruction = |code: u32, k: u32, otherwise: u8| sock_filter {
        code: code as u16,
        jt: 0,
        jf: otherwise,
        k,
    };
    [
        // The number stands at the beginning of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32_BIT, 1),
        instruction(libc::BPF_RET | libc::BPF_K, REFUSAL, 0),
    ]
}

fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

/// Returns what a process may call that asks nobody, or only those it knows.
fn allowed(outside: Outside) -> Result<Rules, BackendError> {
    let mut rules = always(ALLOWED);
    rules.append(&mut always(ALLOWED_OLD));
    // Terminals, which decide what SIGHUP means; descriptors that do not wait; another connection to FUSE.
    let mut ioctls = vec![
        libc::TCGETS,
        libc::TCGETS2,
        libc::FIONBIO,
        libc::FIOCLEX,
        FUSE_DEV_IOC_CLONE,
    ];
    if outside >= Outside::Network {
        // How long an answer is that a name server has sent.
        ioctls.push(libc::FIONREAD);
    }
    rules.insert(libc::SYS_ioctl, one_of(1, &ioctls)?);
    // Names of threads, and of memory, which glibc gives.
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];
    let options = options.map(|option| option as u64);
    rules.insert(libc::SYS_prctl, one_of(0, &options)?);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0, own])?);
    rules.insert(libc::SYS_sched_setscheduler, one_of(1, &[libc::SCHED_IDLE as u64])?);
    if outside >= Outside::UnixSockets {
        rules.append(&mut always(OF_SOCKETS));
        rules.insert(libc::SYS_socket, one_of(0, &[libc::AF_UNIX as u64])?);
    }
    if outside >= Outside::Network {
        rules.append(&mut always(OF_NETWORK));
        let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(|family| family as u64);
        rules.insert(libc::SYS_socket, one_of(0, &families)?);
        rules.append(&mut always(&[libc::SYS_mmap, libc::SYS_mprotect]));
    } else {
        // No memory becomes code.
        let not_code = || condition(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
        rules.insert(libc::SYS_mmap, vec![not_code()?]);
        rules.insert(libc::SYS_mprotect, vec![not_code()?]);
    }
    Ok(rules)
}

/// Returns rules for one argument that must have one of these values.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rules = values.iter().map(|&value| condition(argument, SeccompCmpOp::Eq, value));
    rules.collect()
}

/// Returns a rule for the lower half of an argument: of all of these, the kernel looks at no more.
fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    SeccompRule::new(iter::once(condition).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYBODY: [Outside; 4] = [
        Outside::Nobody,
        Outside::UnixSockets,
        Outside::Network,
        Outside::ForeignCode,
    ];

    fn filter(outside: Outside) -> Filter {
        let needs = Needs {
            directories: Vec::new(),
            removes_in: Vec::new(),
            filesystem: true,
            outside,
        };
        Filter::new(&needs).unwrap()
    }

    impl Filter {
        /// Runs the program as the kernel does, and tells whether it lets a call through; anything but that must be the refusal.
        fn allows(&self, number: u32, arguments: [u64; 6]) -> bool {
            let architecture = self.0[4].k;
            let mut data = [number.to_ne_bytes(), architecture.to_ne_bytes(), [0; 4], [0; 4]].concat();
            data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
            let (mut accumulator, mut next) = (0_u32, 0);
            loop {
                let sock_filter { code, jt, jf, k } = self.0[next];
                next += 1;
                let mut jump = |holds| next += usize::from(if holds { jt } else { jf });
                match u32::from(code) {
                    CODE_LOAD => accumulator = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap()),
                    CODE_AND => accumulator &= k,
                    CODE_JUMP => next += k as usize,
                    CODE_EQUAL => jump(accumulator == k),
                    CODE_GREATER => jump(accumulator > k),
                    CODE_AT_LEAST => jump(accumulator >= k),
                    CODE_RETURN if k == libc::SECCOMP_RET_ALLOW => return true,
                    CODE_RETURN => {
                        assert_eq!(k, REFUSAL, "call {number}");
                        return false;
                    }
                    code => panic!("instruction {code:#x}"),
                }
            }
        }
    }

    const CODE_LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const CODE_AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
    const CODE_JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    const CODE_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const CODE_GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const CODE_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const CODE_RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    #[test]
    fn what_only_an_attack_uses_is_refused_whomever_the_process_asks() {
        for outside in EVERYBODY {
            let filter = filter(outside);
            for &call in REFUSED {
                assert!(!filter.allows(call as u32, [0; 6]), "{outside}: call {call}");
            }
            assert!(filter.allows(libc::SYS_pread64 as u32, [0; 6]), "{outside}");
        }
    }

    #[test]
    fn no_call_is_to_be_had_by_its_number_of_x32() {
        for outside in EVERYBODY {
            let filter = filter(outside);
            for call in (0..600).chain([X32_BIT - 1, u32::MAX - X32_BIT]) {
                assert!(!filter.allows(X32_BIT + call, [0; 6]), "{outside}: call {call}");
            }
        }
    }

    #[test]
    fn arguments_decide_where_a_call_does_more_than_is_needed() {
        let [nobody, sockets, network, _] = EVERYBODY.map(filter);
        let code = [0, 0, libc::PROT_EXEC as u64, 0, 0, 0];
        let own = u64::from(std::process::id());
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            assert!(nobody.allows(call as u32, [0; 6]) && !nobody.allows(call as u32, code));
            assert!(!sockets.allows(call as u32, code) && network.allows(call as u32, code));
        }
        let socket = |filter: &Filter, family: libc::c_int| {
            filter.allows(libc::SYS_socket as u32, [family as u64, 0, 0, 0, 0, 0])
        };
        assert!(!socket(&nobody, libc::AF_UNIX) && socket(&sockets, libc::AF_UNIX));
        assert!(!socket(&sockets, libc::AF_INET) && socket(&network, libc::AF_INET));
        assert!(!socket(&network, libc::AF_PACKET));
        let signal = |process: u64| nobody.allows(libc::SYS_tgkill as u32, [process, 1, 9, 0, 0, 0]);
        assert!(signal(own) && !signal(own + 1));
        let ioctl = |request: u64| nobody.allows(libc::SYS_ioctl as u32, [0, request, 0, 0, 0, 0]);
        assert!(ioctl(FUSE_DEV_IOC_CLONE) && !ioctl(libc::TIOCSTI));
    }
}
