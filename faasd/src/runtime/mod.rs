//! Containers: what an instance is made of, and the real `runc` that makes it.

pub mod agent;
pub mod bundle;
pub mod doctor;
pub mod egress;
pub mod image;
pub mod instance;
pub mod logs;
pub mod mounts;
mod options;
pub mod relay;
pub mod runc;
pub mod runners;
pub mod seccomp;
pub mod secrets;

pub use instance::{Adopted, Created, Request, Runtime, RuntimeError, StartError, new_id};
