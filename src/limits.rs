//! Every bound of a node, each with the reason for its value where the value is not free.
//! A bound that two workloads want different is a knob (`config`); all else is a constant here.

/// The unit of direct I/O: offsets, lengths and addresses are multiples of it.
pub const BLOCK_BYTES: usize = 4096;
/// What nodes keep on disk and say to each other, as one number, the newest that this program knows. A cluster is at the newest version
/// that all its nodes know; what an older program could not read is written and said from then on only.
pub const CLUSTER_VERSION: u16 = if cfg!(feature = "next-version") { 2 } else { 1 };
/// The oldest one, at which every cluster and every data folder begins.
pub const CLUSTER_VERSION_MIN: u16 = 1;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 32 * 1024;
/// The largest value.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Strings above this lie in chunk elements of this size.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The largest frame of the native protocol: one value, its key and room for the fields around them.
pub const FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + KEY_BYTES_MAX + 4096;
/// The largest frame between nodes: a cell also has an element, as long as a key may be, and a message of repair that holds the largest
/// value also a page of places.
pub const PEER_FRAME_BYTES_MAX: usize = FRAME_BYTES_MAX + 16 * KEY_BYTES_MAX;
/// The most keys in one multi-get or multi-put.
pub const MULTI_KEYS_MAX: usize = 4096;
/// The most entries in one page of a scan.
pub const SCAN_ENTRIES_MAX: usize = 1024;
/// Equal arcs of the ring unless the cluster was made with another number.
pub const VNODES_DEFAULT: u32 = 4096;
/// The most vnodes: one a Redis Cluster slot.
pub const VNODES_MAX: u32 = 1 << crate::base::record::SLOT_BITS;
/// The most nodes of a cluster: every node keeps the whole topology, and gossip tells everybody about everybody.
pub const NODES_MAX: usize = 1024;
/// The largest weight of a node; a node's core count is the usual one.
pub const WEIGHT_MAX: u32 = 65_536;
/// The longest name of a rack.
pub const RACK_BYTES_MAX: usize = 31;
/// The longest address: a host name of DNS (255), a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 261;
/// The most replicas of a vnode: the length of a preference list.
pub const RF_MAX: usize = 5;
/// Replicas of a vnode where its namespace says nothing.
pub const RF_DEFAULT: usize = 3;
/// How many replicas a namespace may have. An even number survives no more failures than the odd one below it.
pub const RFS: [usize; 3] = [1, RF_DEFAULT, RF_MAX];
/// The most cores (shards) of a node.
pub const CORES_MAX: usize = 256;
/// The longest name of a namespace.
pub const NAMESPACE_NAME_BYTES_MAX: usize = 64;
/// The longest text of an operator's words to a cluster, and of what one node answers another to them.
pub const WORDS_BYTES_MAX: usize = 2048;
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
const _: () = assert!(VNODES_DEFAULT.is_power_of_two() && VNODES_DEFAULT <= VNODES_MAX);
const _: () = assert!(NODES_MAX < u16::MAX as usize, "a node's index is a u16, and one of them means nobody");
/// Bytes of answers that may wait on a connection before no more of its requests are taken in.
pub const CONNECTION_OUT_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of answers that every connection may hold whatever the others do; beyond, they take from the core's budget.
pub const CONNECTION_OUT_BYTES_FREE: usize = 16 * 1024;
/// Bytes of an unfinished request that every connection may hold; a larger one takes from the core's budget for them.
pub const UNFINISHED_BYTES_FREE: usize = 4096;
/// Large requests of one core that may wait for their turn to come in; more are refused at once: each holds what came with its beginning.
pub const CORE_UNFINISHED_WAIT_MAX: usize = 64;
/// Where others wait for what it holds, a connection has this long to send a request to its end, or to take an answer.
pub const STALLED_MS_MAX: u64 = 5_000;
/// And its request must go on within this.
pub const IDLE_MS_MAX: u64 = 2_000;
/// Requests of one connection that may be worked on at a time; more wait unread.
pub const CONNECTION_REQUESTS_MAX: usize = 1024;
/// Connections of one core.
pub const CORE_CONNECTIONS_MAX: usize = 8192;
/// Requests of one core that may wait (disk, lock, other core, log) before it answers `Overloaded`.
pub const CORE_REQUESTS_MAX: usize = 64 * 1024;
/// Disk reads of one core under way for clients; beyond the depth that devices like, more only queue.
pub const CORE_READS_MAX: usize = 256;
/// Requests that one core may have with another and not answered.
pub const FORWARDS_MAX: usize = 2048;
/// Messages that fit between two cores: every forward and at most two answers of each of the other side's, and a few of the node's own.
pub const MAILBOX_MAX: usize = 8192;
/// Bytes that wait to be sent on one link to another node; beyond, the node counts as gone for what more there is.
pub const LINK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Links of one core: to all nodes, of which each has the core that owns the same vnodes or, with other core counts, several.
pub const LINKS_MAX: usize = 8192;
/// A link must be up within this time.
pub const LINK_CONNECT_MS_MAX: u64 = 1_000;
/// A link that broke is tried again after this long; one that cannot be had after twice as long each time, up to the second.
pub const LINK_RETRY_MS: u64 = 50;
pub const LINK_RETRY_MS_MAX: u64 = 500;
/// Of a core's memory so much, 1 in this, may be values that coordinated gets have gathered.
pub const GATHERED_SHARE: usize = 8;
/// A segment of a core's log of hints that is this long gets no further group.
pub const HINT_SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Bytes of a core's log of hints: twice what `cluster::hints` keeps, and some segments.
pub const HINT_LOG_BYTES_MAX: u64 = (2 << 30) + 8 * HINT_SEGMENT_BYTES;
/// A client must say hello within this time.
pub const HELLO_MS_MAX: u64 = 10_000;
/// A request's deadline when it names none.
pub const DEADLINE_MS_DEFAULT: u32 = 10_000;
/// The longest deadline of a request.
pub const DEADLINE_MS_MAX: u32 = 600_000;
/// A version that a client brings may lie at most this far ahead of the node's clock, which follows it: deadlines may be that much too
/// late, and no later. Enough for a core that has not looked at the wall clock as lately as the one that gave the version.
pub const CLOCK_SKEW_MS_MAX: u64 = 500;

const _: () = assert!(CORE_CONNECTIONS_MAX * (CONNECTION_OUT_BYTES_FREE + UNFINISHED_BYTES_FREE) <= 160 << 20, "what is free is little");
const _: () = assert!(CONNECTION_REQUESTS_MAX * 2 <= FORWARDS_MAX, "one connection alone is paced, never refused");
const _: () = assert!(MAILBOX_MAX >= FORWARDS_MAX * 3 + 1024, "a full mailbox is impossible, so sending never waits");
/// The largest first frame of a connection.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;
/// Bytes that one multi-get may answer with.
pub const MULTI_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;
/// Memory of one core's pool of disk buffers that is registered with the ring and never given back: for each read that clients may have
/// under way a buffer of one or two blocks, and some larger ones for groups of the log.
pub const POOL_SLAB_BYTES: usize = 2 * 1024 * 1024;
/// Beside the slab, free disk buffers that one core keeps: those of a compaction, which come again at once.
pub const POOL_IDLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Larger disk buffers are not kept: only groups of the log with a large value need them.
pub const POOL_BUFFER_BYTES_MAX: usize = 1024 * 1024;

const _: () = assert!(POOL_SLAB_BYTES >= CORE_READS_MAX * BLOCK_BYTES, "reads of clients lie in the slab");
const _: () = assert!(POOL_IDLE_BYTES_MAX.is_multiple_of(POOL_BUFFER_BYTES_MAX));
/// The largest datagram of gossip: below the 1,500 bytes of Ethernet less the headers of IP, UDP and a tunnel, so that none is cut up.
pub const GOSSIP_DATAGRAM_BYTES_MAX: usize = 1400;
/// Members that a node keeps, the dead ones not yet forgotten among them: many times what a cluster of full membership is good for.
pub const MEMBERS_MAX: usize = 4096;
/// The largest table of members as it goes over a stream.
pub const GOSSIP_SYNC_BYTES_MAX: usize = 1024 * 1024;
/// Addresses of a join list.
pub const SEEDS_MAX: usize = 64;
/// A peer whose wall clock is further off is refused by gossip. This finds clocks that nobody set, and bounds how long a recorded datagram
/// is good for; what a drift within it may do to data is bounded where versions are taken (`CLOCK_SKEW_MS_MAX`).
pub const GOSSIP_CLOCK_MS_MAX: u64 = 10_000;

const _: () = assert!(MEMBERS_MAX * 200 + 4096 <= GOSSIP_SYNC_BYTES_MAX, "a record takes at most 200 bytes");
const _: () = assert!(GOSSIP_CLOCK_MS_MAX < 3_600_000 && GOSSIP_CLOCK_MS_MAX > CLOCK_SKEW_MS_MAX, "an hour off is refused");
/// A vnode's hash tree has at most 2^this leaves: 17 KiB of memory, and with 10^9 keys on 20 nodes (RF 3) some 240 cells a leaf.
pub const LEAVES_LOG2_MAX: u8 = 10;
/// Hashes of one message of a comparison: the children of 16 nodes, 5 KiB.
pub const LEVEL_NODES_MAX: usize = 256;
/// Of one message of a comparison, the bytes of its list of cells, and of the cells copied; one cell may lie beyond.
pub const REPAIR_PAGE_BYTES: usize = 64 * 1024;

/// Between two pages that a core's scan of hash trees looks at: some 200 a second while writes make leaves dirty.
pub const REPAIR_SCAN_MS: u64 = 5;
/// Until it looks for dirty leaves again where there was none.
pub const REPAIR_SCAN_IDLE_MS: u64 = 100;
/// Between two comparisons of a core: a round of 600 pairs that hold the same takes half a minute, and hardly anything else.
pub const REPAIR_PAUSE_MS: u64 = 50;
/// What a core's comparisons send and get, in bytes a second.
pub const REPAIR_BYTES_A_SECOND: usize = 4 * 1024 * 1024;
/// The same of the comparisons by which a core takes a vnode over: it is to have its share soon, and the pace of writes holds it back.
pub const MOVE_BYTES_A_SECOND: usize = 16 * 1024 * 1024;
/// A question of a comparison is waited for so long.
pub const REPAIR_ANSWER_MS_MAX: u64 = 5_000;
/// Between two sessions of forgetting of a core: each vnode has one in an hour, which would be some ten a minute on a large core.
pub const FORGET_PAUSE_MS: u64 = 500;
/// What was begun before some instant has a version at most so long after it: the longest that a client waits, by clocks that may be wrong.
pub const BEGUN_IS_OVER_MS: u64 = DEADLINE_MS_MAX as u64 + 3 * GOSSIP_CLOCK_MS_MAX;
/// Of a core's memory so much, 1 in this, may be hash trees; and as much copies of other nodes that are being stored.
pub const REPAIR_SHARE: usize = 32;
