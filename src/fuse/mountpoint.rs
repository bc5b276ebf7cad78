//! Mounts and unmounts: by mount(2) as root, with the help of fusermount3 otherwise.

use std::{
    ffi::{CStr, CString, OsStr, OsString},
    fs,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{MetadataExt, OpenOptionsExt},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    slice,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{AtFlags, CWD, StatxFlags, statx},
    mount::{MountFlags, UnmountFlags},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};

use super::{MountError, MountOptions, kernel::MAX_READ};

const DEVICE: &str = "/dev/fuse";

const MOUNT_TABLE: &str = "/proc/self/mountinfo";

/// The filesystem type that the mount table shows.
const TYPE: &CStr = c"fuse.hushfs";

const FUSERMOUNT: &str = "fusermount3";

/// Options that are flags of mount(2), with what each sets or clears.
const FLAGS: [(&str, MountFlags, bool); 17] = [
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("relatime", MountFlags::RELATIME, true),
];

/// Tells whether an option is one that the kernel's mount has.
pub fn is_kernel_option(option: &str) -> bool {
    FLAGS.iter().any(|(name, ..)| *name == option)
}

/// A mount made by this process, and the connection to the kernel that serves it.
pub struct Mountpoint {
    path: PathBuf,
    id: MountId,
    device: OwnedFd,
}

impl Mountpoint {
    /// Mounts.
    pub fn mount(options: &MountOptions) -> Result<Self, MountError> {
        check(&options.mountpoint)?;
        if let Some(unknown) = options.kernel_options.iter().find(|option| !is_kernel_option(option)) {
            return Err(MountError::UnknownOption(unknown.clone()));
        }
        let path = fs::canonicalize(&options.mountpoint).map_err(|source| unusable(&options.mountpoint, source))?;
        let device = if rustix::process::geteuid().is_root() {
            mount_as_root(&path, options)?
        } else {
            check_device()?;
            mount_with_fusermount(&path, options)?
        };
        let id = MountId::at(&path, &options.fsname).map_err(|source| unusable(&path, source))?;
        Ok(Mountpoint { path, id, device })
    }

    /// Returns where it is, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what tells it from other mounts.
    pub fn id(&self) -> &MountId {
        &self.id
    }

    /// Returns the connection to the kernel.
    pub fn device(&self) -> Result<OwnedFd, MountError> {
        self.device.try_clone().map_err(MountError::Session)
    }

    /// Tells whether it has been unmounted: the kernel has ended the connection (`fuse_dev_poll` in fs/fuse/dev.c).
    pub fn is_gone(&self) -> bool {
        let mut device = [PollFd::new(&self.device, PollFlags::IN)];
        let polled = poll(&mut device, Some(&Timespec::default()));
        polled.is_ok() && device[0].revents().contains(PollFlags::ERR)
    }

    /// Unmounts what could not be served.
    pub fn unmount_now(&self) {
        if let Err(error) = unmount_one(&self.id, &self.path, true) {
            log::error!("{error}");
        }
    }
}

pub(super) fn unusable(path: &Path, source: io::Error) -> MountError {
    MountError::MountpointUnusable {
        path: path.to_owned(),
        source,
    }
}

/// Checks that a mountpoint is a directory that is not one already.
pub fn check(path: &Path) -> Result<(), MountError> {
    let unusable = |source| unusable(path, source);
    let stat = fs::metadata(path).map_err(unusable)?;
    if !stat.is_dir() {
        return Err(unusable(io::Error::from_raw_os_error(libc::ENOTDIR)));
    }
    let canonical = fs::canonicalize(path).map_err(unusable)?;
    if is_mounted(&canonical) {
        return Err(unusable(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "something is mounted there already: unmount it first",
        )));
    }
    Ok(())
}

/// Checks that the FUSE device is there.
pub fn check_device() -> Result<(), MountError> {
    open_device().map(drop)
}

fn open_device() -> Result<fs::File, MountError> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(MountError::NoFuseDevice)
}

/// A mount of a vault, as the mount table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// What was given as its name: the vault's path unless the user chose another.
    pub fsname: PathBuf,
    /// Nothing can be changed.
    pub read_only: bool,
}

/// Finds the vault that is mounted exactly here; the path must be without symbolic links.
pub fn find_mount(canonical: &Path) -> Option<Mounted> {
    let table = fs::read(MOUNT_TABLE).ok()?;
    // The last one is on top.
    lines(&table)
        .rfind(|line| line.mountpoint == canonical.as_os_str().as_bytes())
        .filter(|line| line.kind == TYPE.to_bytes())
        .map(|line| Mounted {
            fsname: OsString::from_vec(line.source).into(),
            read_only: line.options.split(|&byte| byte == b',').any(|option| option == b"ro"),
        })
}

/// Tells whether a FUSE filesystem is mounted exactly here.
fn is_mounted(canonical: &Path) -> bool {
    let Ok(table) = fs::read(MOUNT_TABLE) else {
        return false;
    };
    lines(&table).any(|line| line.mountpoint == canonical.as_os_str().as_bytes() && line.kind.starts_with(b"fuse"))
}

/// A line of the mount table, as far as it matters here. Names in it are bytes, whoever mounted what.
struct MountLine<'l> {
    device: &'l [u8],
    mountpoint: Vec<u8>,
    options: &'l [u8],
    kind: &'l [u8],
    source: Vec<u8>,
}

fn lines(table: &[u8]) -> impl DoubleEndedIterator<Item = MountLine<'_>> {
    table.split(|&byte| byte == b'\n').filter_map(MountLine::parse)
}

impl<'l> MountLine<'l> {
    /// Takes a line apart as proc_pid_mountinfo(5) has it: how many fields stand before the separator differs.
    fn parse(line: &'l [u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let mut front = fields.by_ref().take_while(|field| *field != b"-").skip(2);
        let (device, _root) = (front.next()?, front.next()?);
        let (mountpoint, options) = (front.next()?, front.next()?);
        front.for_each(drop);
        Some(MountLine {
            device,
            mountpoint: unescape(mountpoint),
            options,
            kind: fields.next()?,
            source: unescape(fields.next()?),
        })
    }
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

fn flags(options: &MountOptions) -> MountFlags {
    // As every mount of a user's: no privileges come from inside.
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, options.read_only);
    for option in &options.kernel_options {
        if let Some((_, flag, set)) = FLAGS.iter().find(|(name, ..)| name == option) {
            flags.set(*flag, *set);
        }
    }
    flags
}

fn mount_as_root(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let device = open_device()?;
    let stat = fs::metadata(path).map_err(|source| unusable(path, source))?;
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions,max_read={MAX_READ}",
        device.as_raw_fd(),
        stat.mode() & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).map_err(|_| MountError::Refused(io::ErrorKind::InvalidInput.into()))?;
    rustix::mount::mount(options.fsname.as_os_str(), path, TYPE, flags(options), &*data).map_err(
        |errno| match errno {
            rustix::io::Errno::NODEV => MountError::NoFuseDevice(errno.into()),
            _ => MountError::Refused(errno.into()),
        },
    )?;
    Ok(device.into())
}

/// Has fusermount3, which is installed with root's rights, mount for this user and pass the connection back.
fn mount_with_fusermount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::Session)?;
    let mut name = OsString::from("fsname=");
    for byte in options.fsname.as_bytes() {
        if matches!(byte, b'\\' | b',') {
            name.push("\\");
        }
        name.push(OsStr::from_bytes(slice::from_ref(byte)));
    }
    let mut words = vec![
        "subtype=hushfs".to_owned(),
        "default_permissions".to_owned(),
        format!("max_read={MAX_READ}"),
    ];
    if options.read_only {
        words.push("ro".to_owned());
    }
    if options.allow_other {
        words.push("allow_other".to_owned());
    }
    words.extend(options.kernel_options.iter().cloned());
    name.push(",");
    name.push(words.join(","));
    let mut command = Command::new(FUSERMOUNT);
    command
        .arg("-o")
        .arg(name)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let inherited = theirs.as_raw_fd();
    // SAFETY: fcntl is async-signal-safe, and the descriptor stays open until the child was made.
    unsafe {
        command.pre_exec(move || match libc::fcntl(inherited, libc::F_SETFD, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let child = command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountError::NoFusermount,
        _ => MountError::Session(error),
    })?;
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(MountError::Session)?;
    match device {
        Ok(device) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(MountError::Session(error)),
        _ => Err(fusermount_error(&output.stderr)),
    }
}

fn fusermount_error(stderr: &[u8]) -> MountError {
    let words = String::from_utf8_lossy(stderr);
    let words = words.trim().trim_start_matches("fusermount3: ");
    let words = words.replace(
        "'user_allow_other' is set in /etc/fuse.conf",
        "user_allow_other is set in /etc/fuse.conf: ask the administrator",
    );
    MountError::Fusermount(words)
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// What tells a mount of this process from all others in the mount table: the number of its device, which another may have as soon as it is free, and its
/// source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountId {
    /// As the mount table has it.
    pub device: Vec<u8>,
    /// What was given as its name.
    pub source: Vec<u8>,
}

impl MountId {
    /// Returns that of what is mounted at a path, without asking the filesystem, which need not be served yet.
    pub fn at(path: &Path, source: &OsStr) -> io::Result<Self> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = statx(CWD, path, flags, StatxFlags::empty())?;
        Ok(MountId {
            device: format!("{}:{}", stat.stx_dev_major, stat.stx_dev_minor).into_bytes(),
            source: source.as_bytes().to_vec(),
        })
    }

    fn is(&self, line: &MountLine<'_>) -> bool {
        line.device == self.device && line.kind == TYPE.to_bytes() && line.source == self.source
    }
}

/// Unmounts one mount, at this path or where the directories above it were renamed to; `lazy` detaches it if it is in use.
///
/// # Errors
///
/// EINVAL where it is not mounted any more, whatever is mounted at the path now; EBUSY where something is mounted over it; what umount(2) gives, or
/// fusermount3's words.
pub fn unmount_one(id: &MountId, path: &Path, lazy: bool) -> Result<(), MountError> {
    let refused = |errno| unusable(path, io::Error::from_raw_os_error(errno));
    let table = fs::read(MOUNT_TABLE).map_err(|source| unusable(path, source))?;
    let at = find_place(&table, id, path).map_err(refused)?;
    unmount(&at, lazy)
}

/// Returns another place where a mount is, such as one that it was bound to.
pub fn another_place(id: &MountId) -> Option<PathBuf> {
    let table = fs::read(MOUNT_TABLE).ok()?;
    let line = lines(&table).find(|line| id.is(line))?;
    Some(OsString::from_vec(line.mountpoint).into())
}

/// Finds where something is mounted, with nothing mounted over it; at this path, if it is mounted more than once.
fn find_place(table: &[u8], id: &MountId, path: &Path) -> Result<PathBuf, i32> {
    let path = path.as_os_str().as_bytes();
    let mounted = lines(table).filter(|line| id.is(line));
    let at = mounted
        .map(|line| line.mountpoint)
        .max_by_key(|mountpoint| mountpoint == path)
        .ok_or(libc::EINVAL)?;
    // The last one is on top.
    let top = lines(table).rfind(|line| line.mountpoint == at);
    match top.is_some_and(|line| id.is(&line)) {
        true => Ok(OsString::from_vec(at).into()),
        false => Err(libc::EBUSY),
    }
}

/// Unmounts what is mounted at a path; `lazy` detaches a mount that is in use.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy {
            UnmountFlags::DETACH
        } else {
            UnmountFlags::empty()
        };
        let flags = flags | UnmountFlags::NOFOLLOW;
        return rustix::mount::unmount(path, flags).map_err(|errno| unusable(path, errno.into()));
    }
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MountError::NoFusermount,
            _ => MountError::Session(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    if String::from_utf8_lossy(&output.stderr).contains("busy") {
        return Err(unusable(path, io::Error::from_raw_os_error(libc::EBUSY)));
    }
    Err(fusermount_error(&output.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
        assert_eq!(unescape(b"/plain"), b"/plain");
        assert_eq!(unescape(b"/odd\\9"), b"/odd\\9");
    }

    #[test]
    fn a_line_of_the_mount_table_is_taken_apart() {
        let line = b"98 29 0:52 / /mnt/a\\040b\xff ro,nosuid shared:3 - fuse.hushfs /srv/the\\040vault ro,user_id=0";
        let table = [b"97 29 0:51 / /mnt/\xff rw - tmpfs none rw\n", &line[..], b"\n"].concat();
        let line = lines(&table).next_back().unwrap();
        assert_eq!(line.mountpoint, b"/mnt/a b\xff");
        assert_eq!((line.options, line.kind), (&b"ro,nosuid"[..], &b"fuse.hushfs"[..]));
        assert_eq!(line.source, b"/srv/the vault");
        assert!(MountLine::parse(b"98 29").is_none());
    }

    #[test]
    fn a_filesystem_is_found_where_it_is_and_never_another() {
        let table = b"\
            90 29 0:50 / /mnt/a rw - fuse.hushfs vault rw\n\
            91 29 0:51 / /mnt/b rw - tmpfs none rw\n\
            92 29 0:52 / /mnt/b rw - fuse.hushfs other rw\n\
            93 29 0:50 / /mnt/bind rw - fuse.hushfs vault rw\n\
            94 29 0:53 / /mnt/c rw - fuse.hushfs covered rw\n\
            95 29 0:54 / /mnt/c rw - tmpfs none rw\n\
            96 29 0:55 / /mnt/d rw - fuse.hushfs other rw\n";
        let find = |device: &str, path| {
            let source = match device {
                "0:52" => "other",
                "0:53" => "covered",
                _ => "vault",
            };
            let id = MountId {
                device: device.as_bytes().to_vec(),
                source: source.as_bytes().to_vec(),
            };
            find_place(table, &id, Path::new(path))
        };
        assert_eq!(find("0:50", "/mnt/a"), Ok("/mnt/a".into()));
        assert_eq!(find("0:50", "/mnt/bind"), Ok("/mnt/bind".into()));
        assert_eq!(find("0:52", "/mnt/renamed"), Ok("/mnt/b".into()));
        // Something is mounted over it.
        assert_eq!(find("0:53", "/mnt/c"), Err(libc::EBUSY));
        // Another took its place.
        assert_eq!(find("0:99", "/mnt/a"), Err(libc::EINVAL));
        // Another has got its number since.
        for device in ["0:51", "0:55"] {
            assert_eq!(find(device, "/mnt/b"), Err(libc::EINVAL));
        }
    }

    #[test]
    fn the_root_is_no_fuse_mount() {
        assert!(!is_mounted(Path::new("/")));
    }
}
