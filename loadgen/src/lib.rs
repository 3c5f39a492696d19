//! The load generator of ringkv, as a library that its binary and its tests stand on.
//!
//! | question | file |
//! | --- | --- |
//! | which request is due when | `plan` (arrivals, kinds), `zipf`, `permute`, `keys`, and `source`, which puts them together |
//! | how it gets to the server | `run` (phases, threads), `worker` (a thread's loop), `connection`, `protocol`, `poll` |
//! | whether the answer is right | `value` (values that prove themselves), `ledger` (what may be seen), `journal` (over a crash) |
//! | what is measured | `books` (an answer's worth), `report` (table, JSON) |
//! | what can be asked for | `options` |

pub mod books;
pub mod connection;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod options;
pub mod permute;
pub mod plan;
pub mod poll;
pub mod protocol;
pub mod report;
pub mod run;
pub mod source;
pub mod value;
pub mod worker;
pub mod zipf;
