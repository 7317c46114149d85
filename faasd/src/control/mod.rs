//! The control plane: what is declared, and the work of making it so.
//!
//! One task, the [`owner`], holds the state; everyone else sends it messages. It decides by
//! [`core::lifecycle`](crate::core::lifecycle) and leaves the doing to tasks of their own, which report back. All of
//! it may be killed at any moment: what must survive stands in the [`store`], in the kernel, or with the [`fdstore`].

pub mod access;
pub mod adopt;
pub mod api;
pub mod callers;
pub mod cgroup;
pub mod config;
pub mod daemon;
pub mod dns;
pub mod events;
pub mod fdstore;
mod files;
pub mod flows;
pub mod ingress;
pub mod init;
pub mod instances;
pub mod metrics;
pub mod network;
pub mod owner;
pub mod peer_files;
pub mod peers;
pub mod reconcile;
pub mod records;
mod reload;
pub mod secrets;
pub mod seen;
pub mod service;
pub mod steering;
pub mod store;
pub mod used;
