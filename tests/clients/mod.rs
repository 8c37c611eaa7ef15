//! Real clients drive the real program: what people use, as they use it.

mod browser;
mod curl;
mod node;
mod python;
