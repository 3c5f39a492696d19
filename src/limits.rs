//! Every bound of a node, each with the reason for its value where the value is not free.
//! A bound that two workloads want different is a knob (`config`); all else is a constant here.

/// The unit of direct I/O: offsets, lengths and addresses are multiples of it.
pub const BLOCK_BYTES: usize = 4096;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 32 * 1024;
/// The largest value.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Strings above this lie in chunk elements of this size.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The largest frame of the native protocol: one value, its key and room for the fields around them.
pub const FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX + 4096;
/// The most keys in one multi-get or multi-put.
pub const MULTI_KEYS_MAX: usize = 4096;
/// The most entries in one page of a scan.
pub const SCAN_ENTRIES_MAX: usize = 1024;
/// Equal arcs of the ring unless the cluster was made with another number.
pub const VNODES_DEFAULT: u32 = 4096;
/// The most cores (shards) of a node.
pub const CORES_MAX: usize = 256;
/// The longest name of a namespace.
pub const NAMESPACE_NAME_BYTES_MAX: usize = 64;
/// The most namespaces of a node.
pub const NAMESPACES_MAX: usize = 256;
/// How long a task may run before it yields, in microseconds.
pub const SLICE_US: u64 = 200;
/// Bytes of one WAL segment.
pub const WAL_SEGMENT_BYTES: usize = 32 * 1024 * 1024;
/// The largest table.
pub const TABLE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Bytes of requests and replies in flight that one connection may hold before it is not read any more.
pub const CONNECTION_BYTES_MAX: usize = 32 * 1024 * 1024;
/// `durability = interval` loses at most this much.
pub const INTERVAL_MS_MAX: u64 = 100;
/// The longest time to live, in milliseconds: some 3,000 years, so that adding it to a clock cannot overflow.
pub const TTL_MS_MAX: u64 = 100_000_000_000_000;

const _: () = assert!(BLOCK_BYTES.is_power_of_two());
const _: () = assert!(WAL_SEGMENT_BYTES.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(WAL_SEGMENT_BYTES > FRAME_BYTES_MAX, "the largest write fits into one segment");
const _: () = assert!(CONNECTION_BYTES_MAX > FRAME_BYTES_MAX, "the largest request can be taken in");
const _: () = assert!(VNODES_DEFAULT.is_power_of_two());
