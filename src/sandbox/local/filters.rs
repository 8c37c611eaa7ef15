//! The system call filters: the kernel's surface that a sandbox may touch.
//!
//! Four filters, of which the strictest answer wins: numbers that no filter below can judge are refused
//! first; each checks the architecture (i386 calls from a 64-bit program end it); calls that have a
//! judgeable older form don't exist; and what a sandbox has no use for is not permitted.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// x32 calls carry this bit; a list of 64-bit numbers would let them through.
const X32_BIT: u32 = 0x4000_0000;
/// The newest call that the list below was written for (`removexattrat`). Newer ones don't exist here,
/// so that a new kernel doesn't widen the sandbox by itself; programs fall back as on an older one.
const LAST_KNOWN: u32 = 466;

/// Installs all of them on this process.
pub(super) fn install() -> Result<(), String> {
    for filter in [raw_guard(), absent()?, denied()?] {
        apply_filter(&filter).map_err(|error| error.to_string())?;
    }
    Ok(())
}

const fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "instruction codes have 16 bits; libc gives them as wider numbers"
)]
const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Ends the process for x32 numbers, and hides calls newer than [`LAST_KNOWN`].
fn raw_guard() -> BpfProgram {
    const NR_OFFSET: u32 = 0;
    let enosys = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    vec![
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, NR_OFFSET),
        jump(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32_BIT, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS),
        jump(
            libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K,
            LAST_KNOWN,
            0,
            1,
        ),
        statement(libc::BPF_RET | libc::BPF_K, enosys),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Calls that don't exist: `clone3`, whose flags lie behind a pointer, so that the C library takes
/// `clone`; and memory files, which no limit of ours counts.
fn absent() -> Result<BpfProgram, String> {
    let rules = [
        libc::SYS_clone3,
        libc::SYS_memfd_create,
        libc::SYS_memfd_secret,
    ];
    compile(
        rules.into_iter().map(|call| (call, Vec::new())).collect(),
        libc::ENOSYS,
    )
}

/// Calls that are not permitted, whatever their arguments.
const DENIED: &[i64] = &[
    // Namespaces, mounts, roots.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    // Keyrings belong to a uid, not to a namespace.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Large and rarely needed parts of the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    // Does file and socket operations that no filter sees.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // The machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // Files by handle, past the tree.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Placement of memory.
    libc::SYS_move_pages,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
];

#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

const NEW_NAMESPACES: &[libc::c_int] = &[
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Puts characters into a terminal's input.
const TIOCSTI: u64 = 0x5412;
/// The console's paste, and more.
const TIOCLINUX: u64 = 0x541c;

fn denied() -> Result<BpfProgram, String> {
    let mut rules: Rules = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|call| (*call, Vec::new()))
        .collect();
    let mut clone = Vec::new();
    for flag in NEW_NAMESPACES {
        let flag = u64::from(flag.unsigned_abs());
        clone.push(rule(vec![when(0, SeccompCmpOp::MaskedEq(flag), flag)?])?);
    }
    rules.insert(libc::SYS_clone, clone);
    // The kernel looks at 32 bits of an ioctl's number, so the filter must not look at more.
    rules.insert(
        libc::SYS_ioctl,
        vec![
            rule(vec![when(1, SeccompCmpOp::Eq, TIOCSTI)?])?,
            rule(vec![when(1, SeccompCmpOp::Eq, TIOCLINUX)?])?,
        ],
    );
    rules.insert(libc::SYS_socket, sockets()?);
    // Only the harmless ones: the default, the question, and what a debugger sets.
    let mut personality = Vec::new();
    for allowed in [0, 0xffff_ffff, 0x0004_0000] {
        personality.push(when(0, SeccompCmpOp::Ne, allowed)?);
    }
    rules.insert(libc::SYS_personality, vec![rule(personality)?]);
    compile(rules, libc::EPERM)
}

/// Every family but UNIX, INET, INET6 and NETLINK; of that, every protocol but ROUTE, without which
/// programs can't list network interfaces; and raw sockets.
fn sockets() -> Result<Vec<SeccompRule>, String> {
    const TYPE_MASK: u64 = 0xf;
    let number = |family: libc::c_int| u64::from(family.unsigned_abs());
    let (inet, inet6) = (number(libc::AF_INET), number(libc::AF_INET6));
    let netlink = number(libc::AF_NETLINK);
    let mut others = Vec::new();
    for allowed in [number(libc::AF_UNIX), inet, inet6, netlink] {
        others.push(when(0, SeccompCmpOp::Ne, allowed)?);
    }
    let raw = number(libc::SOCK_RAW);
    Ok(vec![
        rule(others)?,
        rule(vec![
            when(0, SeccompCmpOp::Eq, netlink)?,
            when(2, SeccompCmpOp::Ne, number(libc::NETLINK_ROUTE))?,
        ])?,
        rule(vec![
            when(0, SeccompCmpOp::Eq, inet)?,
            when(1, SeccompCmpOp::MaskedEq(TYPE_MASK), raw)?,
        ])?,
        rule(vec![
            when(0, SeccompCmpOp::Eq, inet6)?,
            when(1, SeccompCmpOp::MaskedEq(TYPE_MASK), raw)?,
        ])?,
    ])
}

fn when(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)
        .map_err(|error| error.to_string())
}

fn rule(all: Vec<SeccompCondition>) -> Result<SeccompRule, String> {
    SeccompRule::new(all).map_err(|error| error.to_string())
}

/// A filter that answers what `rules` match with `errno` and allows the rest.
fn compile(rules: Rules, errno: libc::c_int) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        arch,
    )
    .map_err(|error| error.to_string())?;
    BpfProgram::try_from(filter).map_err(|error| error.to_string())
}
