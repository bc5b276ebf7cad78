//! A vault opened.

pub mod content;
