use hushfs::{
    backing::Dir,
    crypto::{block::Suite, keys::*, locked::LockedKey},
    format::layout::Layout,
    fs::*,
    fuse,
    ids::*,
    vault::*,
};
fn main() {
    env_logger::init();
    let args: Vec<String> = std::env::args().collect();
    let vault_id = VaultId([1; 16]);
    let epoch = EpochKey::new(LockedKey::copy_of(&[2; 32]));
    let layout = Layout::new(Suite::Aes256GcmSiv, 4096).unwrap();
    let keys = EpochKeys::new([(Epoch(1), epoch.header_wrapping_key(vault_id))].into(), Epoch(1));
    let vault = Vault::new(vault_id, layout, keys, NamesRoot::new(LockedKey::copy_of(&[3; 32])));
    let (soft, hard) = {
        let l = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        (l.current, l.maximum)
    };
    let _ = (soft, hard);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit {
            current: hard,
            maximum: hard,
        },
    )
    .unwrap();
    unsafe { libc::umask(0) };
    let fs = Fs::new(
        vault,
        Dir::open(args[1].as_ref()).unwrap(),
        FsOptions {
            read_only: false,
            shared: false,
            own_uid: 0,
            own_gid: 0,
            cached_descriptors: 2048,
        },
    )
    .unwrap();
    let options = fuse::MountOptions {
        mountpoint: args[2].clone().into(),
        read_only: false,
        allow_other: true,
        fsname: "scratch".into(),
        kernel_options: vec![],
        idle: None,
        threads: std::env::var("T").ok().map(|t| t.parse().unwrap()),
    };
    fuse::mount(fs, &options, || println!("ready")).unwrap();
    println!("done");
}
