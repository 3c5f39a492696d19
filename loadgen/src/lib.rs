//! The load generator of ringkv, as a library that its binary and its tests stand on.
//!
//! | question | file |
//! | --- | --- |
//! | which request is due when | `plan` (arrivals, kinds), `draw`, `zipf`, `permute`, `sizes`, `keys`; `source` puts them together |
//! | how it gets to the server | `run` (phases, threads), `worker` (a thread's loop), `connection`, `protocol` (four of them), `poll` |
//! | what becomes of a lost connection | `dialer` |
//! | whether the answer is right | `value` (values that prove themselves), `ledger` (what may be seen), `journal` (over a crash) |
//! | what is measured | `books` (an answer's worth), `progress` (as it goes on), `report` (table, JSON), `html` and `chart` (drawn) |
//! | what a caller noticed of a node's failure | `availability` |
//! | which rate holds a p99 | `search` |
//! | what can be asked for | `options` |

pub mod availability;
pub mod books;
pub mod chart;
pub mod connection;
pub mod dialer;
pub mod draw;
pub mod html;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod options;
pub mod permute;
pub mod plan;
pub mod poll;
pub mod progress;
pub mod protocol;
pub mod report;
pub mod run;
pub mod search;
pub mod sizes;
pub mod source;
pub mod value;
pub mod worker;
pub mod zipf;
