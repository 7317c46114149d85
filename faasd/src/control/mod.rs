//! Control: what is declared, and the work of making it so.

pub mod api;
