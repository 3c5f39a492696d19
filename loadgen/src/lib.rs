//! The load generator of ringkv.
//!
//! `options` reads the command line, `plan`, `zipf`, `permute` and `keys` say which request is due when, `value` and `ledger` prove
//! answers, `journal` keeps the ledger over a crash, `report` prints.

pub mod journal;
pub mod keys;
pub mod ledger;
pub mod options;
pub mod permute;
pub mod plan;
pub mod report;
pub mod value;
pub mod zipf;
