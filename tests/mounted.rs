//! The program on a real mount: one module per behaviour.

mod support;

#[path = "mounted/acl.rs"]
mod acl;
#[path = "mounted/audit.rs"]
mod audit;
#[path = "mounted/basics.rs"]
mod basics;
#[path = "mounted/behind.rs"]
mod behind;
#[path = "mounted/bucket.rs"]
mod bucket;
#[path = "mounted/counts.rs"]
mod counts;
#[path = "mounted/differential.rs"]
mod differential;
#[path = "mounted/keys.rs"]
mod keys;
#[path = "mounted/kill.rs"]
mod kill;
#[path = "mounted/limits.rs"]
mod limits;
#[path = "mounted/programs.rs"]
mod programs;
#[path = "mounted/semantics.rs"]
mod semantics;
