//! What a network may do to messages beside losing them: some come late, some twice, the second time later still. A stream of bytes does
//! neither, so the simulator has it done here, where a link's messages are taken in. A node never does.

use super::cluster::Cluster;
use super::{Origin, Shard, Ticket};
use crate::base::checksum::hash64;
use crate::io::Class;
use crate::limits::PEER_FRAME_BYTES_MAX;
use crate::wire::frame::FrameReader;
use crate::wire::peer::{AnyMessage, Head, Message, Road, decode_any, encode, encode_repair};
use crate::wire::peer_repair::{Ask, Question, RepairMessage};
use std::rc::Rc;
use std::time::Duration;

/// Of messages that bring cells.
#[derive(Clone, Copy, Debug)]
pub struct Late {
    /// Of one put in so many every message comes late, each by up to so many milliseconds.
    pub puts_one_in: u64,
    pub puts_ms_max: u64,
    /// One cell in so many comes again, and one of so many messages of comparisons, up to so many milliseconds later.
    pub cells_one_in: u64,
    pub pushes_one_in: u64,
    pub again_ms_max: u64,
}

/// Whether a message is held up; then it is handled when it comes.
pub(super) fn is_held_up(
    shard: &Rc<Shard>,
    cluster: &Rc<Cluster>,
    ticket: &Ticket,
    from: u64,
    head: Head,
    message: &AnyMessage<'_>,
) -> bool {
    let Some(late) = cluster.late else { return false };
    let one_in = |one_in| shard.io.random_u64().is_multiple_of(one_in);
    let (mut bytes, mut is_held_up) = (Vec::new(), false);
    match message {
        AnyMessage::Plain(message @ Message::Store { road, cell, .. }) => {
            // All that its replicas are told of a put goes by its version.
            let of_put = hash64(&cell.newest().to_bytes());
            is_held_up = *road == Road::Put && of_put.is_multiple_of(late.puts_one_in);
            if !is_held_up && !one_in(late.cells_one_in) {
                return false;
            }
            encode(&mut bytes, 0, head, message);
        }
        AnyMessage::Repair(message @ RepairMessage::Ask(Ask { question: Question::Push(_), .. })) if one_in(late.pushes_one_in) => {
            encode_repair(&mut bytes, 0, head, message);
        }
        _ => return false,
    }
    let ms_max = if is_held_up { late.puts_ms_max } else { late.again_ms_max };
    let after = Duration::from_millis(shard.io.random_u64() % ms_max);
    let ticket = if is_held_up { ticket.clone() } else { Ticket { origin: Origin::Nobody, id: 0 } };
    let (shard, cluster) = (shard.clone(), cluster.clone());
    drop(shard.clone().io.spawn(Class::Replication, async move {
        shard.io.sleep(after).await;
        let mut reader = FrameReader::new(PEER_FRAME_BYTES_MAX);
        for frame in reader.feed(&bytes) {
            let (head, message) = decode_any(&frame.expect("just encoded")).expect("just encoded");
            shard.handle_question(&cluster, ticket.clone(), from, head, message);
        }
        shard.settle();
    }));
    is_held_up
}
