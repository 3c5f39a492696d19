//! Every fault of the model happens, and leaves what the model says; and the same seed gives the same world.

use super::*;
use crate::io::contract::SCENARIOS;
use crate::io::op::OpenHow;
use crate::io::wakers::Wakers;
use crate::io::{Class, File, Io, SocketAddr};
use crate::limits::BLOCK_BYTES;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn world(seed: u64) -> (World, MachineId) {
    let world = World::new(seed);
    let machine = world.add_machine(Faults::default());
    (world, machine)
}

fn code<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

async fn put(io: &Io, file: &File, block: u64, blocks: usize, fill: u8, sync: bool) -> io::Result<()> {
    let mut buf = io.buf(blocks * BLOCK_BYTES);
    buf.fill(fill);
    io.write(file, block * BLOCK_BYTES as u64, buf, sync).await.map(|_| ())
}

/// A file `/a` of `blocks` durable blocks of ones, with a durable name.
async fn make(io: &Io, blocks: usize) -> File {
    let file = io.open(Path::new("/a"), OpenHow::Create).await.unwrap();
    put(io, &file, 0, blocks, 1, true).await.unwrap();
    io.sync_dir(Path::new("/")).await.unwrap();
    file
}

fn names(world: &World, machine: MachineId) -> BTreeSet<String> {
    world.tree(machine).into_keys().filter(|name| name != "/").collect()
}

fn seen(world: &World, name: &str) -> u64 {
    world.stats().get(name).copied().unwrap_or(0)
}

#[test]
fn an_unsynced_write_is_lost_kept_or_torn_at_sectors() {
    let mut shapes = BTreeSet::new();
    for seed in 0..200 {
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move {
            let file = make(&io, 2).await;
            put(&io, &file, 0, 2, 2, false).await.unwrap();
            assert_eq!(io.read(&file, 0, BLOCK_BYTES).await.unwrap()[0], 2, "seen before it is durable");
        });
        world.crash(machine);
        world.crash(machine);
        assert_eq!(seen(&world, "crash"), 1, "a machine without power does not fall");
        let bytes = world.file_bytes(machine, Path::new("/a")).unwrap();
        assert_eq!(bytes.len(), 2 * BLOCK_BYTES);
        assert!(bytes.chunks(SECTOR_BYTES).all(|sector| sector.iter().all(|byte| *byte == sector[0])), "a sector is whole");
        let new = bytes.iter().filter(|byte| **byte == 2).count();
        let shape = ["lost unsynced write", "torn write", "kept unsynced write"][usize::from(new > 0) + usize::from(new == bytes.len())];
        assert_eq!(seen(&world, shape), 1);
        shapes.insert(shape);
    }
    assert_eq!(shapes.len(), 3);
}

#[test]
fn what_was_synced_survives_every_crash_and_nothing_older_goes_over_it() {
    for seed in 0..100 {
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move {
            let file = make(&io, 4).await;
            put(&io, &file, 0, 4, 2, false).await.unwrap();
            put(&io, &file, 1, 1, 3, true).await.unwrap();
            put(&io, &file, 2, 1, 4, false).await.unwrap();
            io.punch(&file, 3 * BLOCK_BYTES as u64, BLOCK_BYTES as u64).await.unwrap();
            if seed % 2 == 0 {
                io.sync(&file).await.unwrap();
                put(&io, &file, 6, 1, 5, seed % 4 == 0).await.unwrap();
            }
        });
        world.crash(machine);
        let bytes = world.file_bytes(machine, Path::new("/a")).unwrap();
        let block = |at: usize| &bytes[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
        assert!(block(1).iter().all(|byte| *byte == 3));
        if seed % 2 == 0 {
            assert!(
                block(0).iter().all(|byte| *byte == 2) && block(2).iter().all(|byte| *byte == 4) && block(3).iter().all(|byte| *byte == 0)
            );
        }
        if seed % 4 == 0 {
            assert_eq!(bytes.len(), 7 * BLOCK_BYTES);
            assert!(block(6).iter().all(|byte| *byte == 5));
        }
    }
}

#[test]
fn a_length_may_come_without_its_data_and_a_resize_may_be_lost() {
    let mut found = BTreeSet::new();
    for seed in 0..200 {
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move {
            let file = make(&io, 1).await;
            put(&io, &file, 1, 1, 2, false).await.unwrap();
            io.resize(&file, 100 * BLOCK_BYTES as u64).await.unwrap();
        });
        world.crash(machine);
        found.extend(world.stats().into_keys());
        assert!(world.file_bytes(machine, Path::new("/a")).unwrap()[..BLOCK_BYTES].iter().all(|byte| *byte == 1));
    }
    for name in ["length without data", "kept length", "lost resize", "kept resize"] {
        assert!(found.contains(name), "{name}");
    }
}

#[test]
fn names_are_durable_by_sync_dir_alone_and_a_rename_is_whole() {
    let mut outcomes = BTreeSet::new();
    let mut found = BTreeSet::new();
    for seed in 0..300 {
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move {
            io.make_dir(Path::new("/d")).await.unwrap();
            io.sync_dir(Path::new("/")).await.unwrap();
            let file = io.open(Path::new("/d/x.tmp"), OpenHow::Create).await.unwrap();
            put(&io, &file, 0, 1, 7, true).await.unwrap();
            io.rename(Path::new("/d/x.tmp"), Path::new("/d/x")).await.unwrap();
            if seed % 3 == 0 {
                io.sync_dir(Path::new("/d")).await.unwrap();
            }
            io.link(Path::new("/d/x"), Path::new("/d/y")).await.unwrap();
            io.remove(Path::new("/d/x")).await.unwrap();
        });
        world.crash(machine);
        let there = names(&world, machine);
        for name in there.iter().filter(|name| !name.ends_with('/')) {
            assert_eq!(world.file_bytes(machine, Path::new(name)).unwrap(), vec![7; BLOCK_BYTES]);
        }
        assert!(there.contains("/d/") && !(there.contains("/d/x.tmp") && there.contains("/d/x")));
        assert!(seed % 3 != 0 || !there.contains("/d/x.tmp"));
        outcomes.insert(there);
        found.extend(world.stats().into_keys());
    }
    assert!(outcomes.len() >= 5, "{outcomes:?}");
    for what in ["create", "rename", "link", "unlink"] {
        assert!(found.contains(&*format!("lost {what}")) && found.contains(&*format!("kept {what}")), "{what}");
    }
}

#[test]
fn a_folder_may_be_renamed_and_removed_and_what_hangs_on_a_lost_name_is_gone() {
    let mut lost = 0;
    for seed in 0..100 {
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move {
            io.make_dir(Path::new("/new")).await.unwrap();
            let _file = io.open(Path::new("/new/f"), OpenHow::Create).await.unwrap();
            io.sync_dir(Path::new("/new")).await.unwrap();
            assert_eq!(code(io.remove_dir(Path::new("/new")).await), libc::ENOTEMPTY);
            io.rename(Path::new("/new"), Path::new("/old")).await.unwrap();
            assert_eq!(io.list(Path::new("/old")).await.unwrap()[0].name, "f");
        });
        world.crash(machine);
        let there = names(&world, machine);
        lost += u64::from(there.is_empty());
        assert!(there.is_empty() || there.contains("/new/f") || there.contains("/old/f"), "{there:?}");
        assert!(there.len().is_multiple_of(2));
    }
    assert!(lost > 0 && lost < 100);
}

#[test]
fn a_crash_falls_before_in_or_after_the_operation_that_was_named() {
    for seed in 0..60 {
        let site = [CrashSite::Before, CrashSite::During, CrashSite::After][seed as usize % 3];
        let (world, machine) = world(seed);
        world.run_task(machine, LONG, |io| async move { drop(make(&io, 2).await) });
        world.crash_at_op(machine, world.disk_ops(machine) + 2, site);
        let io = world.spawn_core(machine, 0, &Wakers::new(1));
        let after = Rc::new(Cell::new(false));
        let (task, done) = (io.clone(), after.clone());
        io.spawn(Class::Foreground, async move {
            let file = task.open(Path::new("/a"), OpenHow::ReadWrite).await.unwrap();
            put(&task, &file, 0, 2, 2, true).await.unwrap();
            done.set(true);
        });
        world.run_for(LONG);
        assert!(!after.get() && !world.is_up(machine) && world.cores(machine) == 0, "the completion never comes");
        let bytes = world.file_bytes(machine, Path::new("/a")).unwrap();
        let new = bytes.iter().filter(|byte| **byte == 2).count();
        let label = match site {
            CrashSite::Before => {
                assert_eq!(new, 0);
                "before durable write a"
            }
            CrashSite::During => {
                assert!(new > 0 && new < bytes.len());
                "during durable write a"
            }
            CrashSite::After => {
                assert_eq!(new, bytes.len());
                "after durable write a"
            }
        };
        assert_eq!(world.crash_sites().get(label), Some(&1));
        world.run_task(machine, LONG, |io| async move { drop(io.open(Path::new("/a"), OpenHow::Read).await.unwrap()) });
    }
}

#[test]
fn a_kill_keeps_what_was_written_and_ends_every_core() {
    let (world, machine) = world(1);
    let wakers = Wakers::new(2);
    for core in 0..2 {
        let io = world.spawn_core(machine, core, &wakers);
        let task = io.clone();
        io.spawn(Class::Foreground, async move {
            if core == 0 {
                let file = make(&task, 1).await;
                put(&task, &file, 0, 1, 2, false).await.unwrap();
            }
            task.sleep(LONG).await;
        });
    }
    world.run_for(Duration::from_secs(1));
    world.kill(machine);
    assert_eq!((world.cores(machine), world.is_up(machine)), (0, true));
    assert_eq!(world.file_bytes(machine, Path::new("/a")).unwrap(), vec![2; BLOCK_BYTES]);
}

#[test]
fn reads_writes_and_syncs_fail_where_asked_and_a_later_sync_does_not_mend_it() {
    let mut lost = 0;
    for seed in 0..40 {
        let (world, machine) = world(seed);
        let inner = world.clone();
        world.run_task(machine, LONG, |io| async move {
            let file = make(&io, 1).await;
            inner.faults(machine, |faults| faults.read_error_one_in = 1);
            assert_eq!(code(io.read(&file, 0, BLOCK_BYTES).await), libc::EIO);
            inner.faults(machine, |faults| *faults = Faults { write_error_one_in: 1, ..Faults::default() });
            assert_eq!(code(put(&io, &file, 0, 1, 2, true).await), libc::EIO);
            inner.faults(machine, |faults| *faults = Faults::default());
            put(&io, &file, 0, 1, 3, false).await.unwrap();
            inner.faults(machine, |faults| faults.sync_error_one_in = 1);
            assert_eq!(code(io.sync(&file).await), libc::EIO);
            assert_eq!(code(io.sync_dir(Path::new("/")).await), libc::EIO);
            assert_eq!(code(put(&io, &file, 4, 1, 4, true).await), libc::EIO);
            inner.faults(machine, |faults| *faults = Faults::default());
            io.sync(&file).await.unwrap();
        });
        world.crash(machine);
        lost += u64::from(world.file_bytes(machine, Path::new("/a")).unwrap()[0] != 3);
        for name in ["EIO read", "EIO write", "EIO durable write", "EIO sync"] {
            assert!(seen(&world, name) > 0, "{name}");
        }
    }
    assert!(lost > 5 && lost < 35, "{lost}");
}

#[test]
fn a_full_disk_refuses_writes_that_allocate_until_space_is_given_back() {
    let (world, machine) = world(1);
    world.set_capacity(machine, 8 * BLOCK_BYTES as u64);
    world.run_task(machine, LONG, |io| async move {
        let file = make(&io, 6).await;
        assert_eq!(code(put(&io, &file, 6, 4, 2, true).await), libc::ENOSPC);
        put(&io, &file, 0, 6, 2, true).await.unwrap();
        let other = io.open(Path::new("/b"), OpenHow::Create).await.unwrap();
        io.resize(&file, BLOCK_BYTES as u64).await.unwrap();
        put(&io, &other, 0, 6, 3, true).await.unwrap();
        io.punch(&other, 0, 6 * BLOCK_BYTES as u64).await.unwrap();
        io.remove(Path::new("/a")).await.unwrap();
        put(&io, &file, 0, 1, 3, true).await.unwrap();
        drop(file);
        io.sleep(Duration::from_millis(1)).await;
        put(&io, &other, 0, 8, 3, true).await.unwrap();
    });
    assert_eq!(world.disk_bytes(machine), 8 * BLOCK_BYTES as u64);
    assert_eq!(seen(&world, "ENOSPC"), 1);
}

#[test]
fn rot_flips_one_bit_of_what_is_read_and_stays() {
    let (world, machine) = world(1);
    world.run_task(machine, LONG, |io| async move { drop(make(&io, 2).await) });
    world.rot(machine, Path::new("/a"), 5000).unwrap();
    assert_eq!(code(world.rot(machine, Path::new("/a"), 50_000)), libc::ENOENT);
    world.crash(machine);
    let bytes = world.file_bytes(machine, Path::new("/a")).unwrap();
    let wrong: Vec<(usize, u32)> =
        bytes.iter().enumerate().filter(|(_, byte)| **byte != 1).map(|(at, byte)| (at, (byte ^ 1).count_ones())).collect();
    assert_eq!(wrong, [(5000, 1)]);
    assert_eq!(seen(&world, "bit rot"), 1);
}

#[test]
fn slow_operations_and_pauses_take_long_and_slices_end() {
    let (world, machine) = world(1);
    world.faults(machine, |faults| faults.slow_one_in = 1);
    world.run_task(machine, LONG, |io| async move { drop(make(&io, 1).await) });
    assert!(world.now().0 > 10_000_000);
    world.faults(machine, |faults| *faults = Faults { pause_one_in: 10, ..Faults::default() });
    world.run_task(machine, LONG, |io| async move {
        while !io.slice_is_over() {
            io.yield_now().await;
        }
    });
    assert!(seen(&world, "slow io") > 0 && seen(&world, "core pause") > 0);
}

#[test]
#[should_panic(expected = "whole blocks")]
fn an_unaligned_operation_is_a_mistake_of_ours() {
    let (world, machine) = world(1);
    world.run_task(machine, LONG, |io| async move {
        let file = make(&io, 1).await;
        let _ = io.write(&file, 512, io.buf(BLOCK_BYTES), true).await;
    });
}

#[test]
fn wall_clocks_are_off_drift_and_jump_a_machine_each() {
    let (world, a) = world(1);
    let b = world.add_machine(Faults::default());
    let start_ms = world.wall_ms(a);
    assert_eq!(world.wall_ms(b), start_ms);
    world.set_wall_offset_ms(b, -5_000);
    world.set_wall_drift_ppm(a, 1_000);
    world.run_for(Duration::from_secs(10));
    assert_eq!(world.wall_ms(a), start_ms + 10_010);
    assert_eq!(world.wall_ms(b), start_ms + 5_000);
}

/// Starts a listener on `machine` that answers with what it gets until the end, `pause` after each piece.
fn echo(world: &World, machine: MachineId, pause: Duration) -> SocketAddr {
    let io = world.spawn_core(machine, 0, &Wakers::new(1));
    let task = io.clone();
    io.spawn(Class::Foreground, async move {
        let listener = task.listen(SocketAddr::new(World::ip(machine), 7)).await.unwrap();
        while let Ok((socket, _)) = task.accept(&listener).await {
            let one = task.clone();
            task.spawn(Class::Foreground, async move {
                while let Ok(chunks) = one.receive(&socket).await {
                    one.sleep(pause).await;
                    for chunk in chunks.iter() {
                        if one.send(&socket, chunk.to_vec()).await.is_err() {
                            return;
                        }
                    }
                    if chunks.is_empty() {
                        return;
                    }
                }
            });
        }
    });
    world.run_for(Duration::from_millis(1));
    SocketAddr::new(World::ip(machine), 7)
}

/// Sends `bytes` bytes in pieces and reads them back: how many came, and how it ended.
async fn talk(io: Io, address: SocketAddr, bytes: usize) -> io::Result<usize> {
    let socket = io.connect(address).await?;
    let sender = (io.clone(), socket.clone());
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 7 + at / 251) as u8).collect();
    let wanted = sent.clone();
    io.spawn(Class::Foreground, async move {
        for piece in sent.chunks(50_000) {
            if sender.0.send(&sender.1, piece.to_vec()).await.is_err() {
                return;
            }
        }
    });
    let mut got = 0;
    while got < bytes {
        let chunks = io.receive(&socket).await?;
        if chunks.is_empty() {
            break;
        }
        for chunk in chunks.iter() {
            assert_eq!(**chunk, wanted[got..got + chunk.len()], "in order, once");
            got += chunk.len();
        }
    }
    Ok(got)
}

#[test]
fn a_stream_comes_whole_and_in_order_in_pieces_of_any_size() {
    for seed in 0..10 {
        let (world, server) = world(seed);
        let client = world.add_machine(Faults { chunk_one_in: 2, window_bytes: 5_000, ..Faults::rough() });
        let address = echo(&world, server, Duration::ZERO);
        let got = world.run_task(client, LONG, |io| talk(io, address, 300_000));
        assert_eq!(got.unwrap(), 300_000);
        assert!(seen(&world, "chunked delivery") > 0);
    }
}

#[test]
fn a_sender_waits_while_its_peer_does_not_read() {
    let (world, server) = world(3);
    let client = world.add_machine(Faults::default());
    let io = world.spawn_core(server, 0, &Wakers::new(1));
    let task = io.clone();
    io.spawn(Class::Foreground, async move {
        let listener = task.listen(SocketAddr::new(World::ip(server), 7)).await.unwrap();
        let _kept = task.accept(&listener).await.unwrap();
        task.sleep(LONG * 2).await;
    });
    world.run_for(Duration::from_millis(1));
    let sent = Rc::new(Cell::new(0));
    let count = sent.clone();
    let io = world.spawn_core(client, 0, &Wakers::new(1));
    let task = io.clone();
    io.spawn(Class::Foreground, async move {
        let socket = task.connect(SocketAddr::new(World::ip(server), 7)).await.unwrap();
        while task.send(&socket, vec![1; 10_000]).await.is_ok() {
            count.set(count.get() + 10_000);
        }
    });
    world.run_for(LONG);
    assert!(sent.get() >= 200_000 && sent.get() < 2_000_000, "{}", sent.get());
}

#[test]
fn a_connection_is_refused_times_out_or_is_reset() {
    let (world, server) = world(4);
    let client = world.add_machine(Faults::default());
    let address = SocketAddr::new(World::ip(server), 7);
    assert_eq!(code(world.run_task(client, LONG, |io| talk(io, address, 10))), libc::ECONNREFUSED);
    echo(&world, server, Duration::ZERO);
    world.faults(client, |faults| faults.reset_one_in = 1);
    assert_eq!(code(world.run_task(client, LONG, |io| talk(io, address, 10))), libc::ECONNRESET);
    world.faults(client, |faults| faults.reset_one_in = 0);
    world.crash(server);
    for doom in 0..3 {
        echo(&world, server, LONG);
        let inner = world.clone();
        let got = world.run_task(client, LONG, |io| async move {
            let socket = io.connect(address).await.unwrap();
            io.send(&socket, vec![1; 10]).await.unwrap();
            io.sleep(Duration::from_millis(10)).await;
            match doom {
                0 => inner.crash(server),
                1 => inner.kill(server),
                _ => inner.reset_connections(client, server),
            }
            io.receive(&socket).await.map(|_| ())
        });
        assert_eq!(code(got), libc::ECONNRESET, "{doom}");
        world.crash(server);
    }
    assert_eq!(code(world.run_task(client, LONG, |io| talk(io, address, 10))), libc::ETIMEDOUT);
    for name in ["connect refused", "connect timed out", "reset", "reset by a fall", "crash", "kill"] {
        assert!(seen(&world, name) > 0, "{name}");
    }
}

#[test]
fn a_cut_link_stalls_bytes_until_it_heals_or_resets_them_after_a_while() {
    for heals in [true, false] {
        let (world, server) = world(5);
        let client = world.add_machine(Faults::default());
        let address = echo(&world, server, Duration::ZERO);
        let inner = world.clone();
        let (got, took) = world.run_task(client, LONG, |io| async move {
            let socket = io.connect(address).await.unwrap();
            inner.cut(server, client);
            let start = io.now();
            io.send(&socket, vec![1; 10]).await.unwrap();
            let (world, timer) = (inner.clone(), io.clone());
            if heals {
                io.spawn(Class::Foreground, async move {
                    timer.sleep(Duration::from_secs(5)).await;
                    world.heal(server, client);
                });
            }
            (io.receive(&socket).await.map(|chunks| chunks.iter().map(|chunk| chunk.len()).sum::<usize>()), io.now().since(start))
        });
        assert!(seen(&world, "partition") == 1 && seen(&world, "stalled by a partition") == 1);
        if heals {
            assert_eq!(got.unwrap(), 10);
            assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(6));
        } else {
            assert_eq!(code(got), libc::ECONNRESET);
            assert!(took >= Duration::from_secs(9) && seen(&world, "reset after a stall") == 1);
        }
    }
}

#[test]
fn a_closed_stream_ends_after_its_last_byte_and_answers_data_with_a_reset() {
    let (world, server) = world(6);
    let client = world.add_machine(Faults::default());
    let io = world.spawn_core(server, 0, &Wakers::new(1));
    let task = io.clone();
    io.spawn(Class::Foreground, async move {
        let listener = task.listen(SocketAddr::new(World::ip(server), 7)).await.unwrap();
        let (socket, _) = task.accept(&listener).await.unwrap();
        task.send(&socket, vec![9; 100_000]).await.unwrap();
        drop(socket);
        task.sleep(LONG).await;
    });
    world.run_for(Duration::from_millis(1));
    world.run_task(client, LONG, |io| async move {
        let socket = io.connect(SocketAddr::new(World::ip(server), 7)).await.unwrap();
        let mut got = 0;
        loop {
            let chunks = io.receive(&socket).await.unwrap();
            if chunks.is_empty() {
                break;
            }
            got += chunks.iter().map(|chunk| chunk.len()).sum::<usize>();
        }
        assert_eq!(got, 100_000);
        let _ = io.send(&socket, vec![1]).await;
        io.sleep(Duration::from_millis(10)).await;
        assert_eq!(code(io.send(&socket, vec![1]).await), libc::ECONNRESET);
    });
}

#[test]
fn a_wake_turns_the_core_it_names() {
    let (world, machine) = world(7);
    let wakers = Wakers::new(2);
    let message = Rc::new(Cell::new(false));
    let seen_at = Rc::new(Cell::new(0));
    let receiver = world.spawn_core(machine, 1, &wakers);
    let (pending, told, task) = (message.clone(), seen_at.clone(), receiver.clone());
    receiver.set_inbox(Box::new(move || pending.get()));
    receiver.spawn(Class::Foreground, async move {
        task.inbox().await;
        told.set(task.now().0);
    });
    let sender = world.spawn_core(machine, 0, &wakers);
    let task = sender.clone();
    sender.spawn(Class::Foreground, async move {
        task.sleep(Duration::from_secs(1)).await;
        message.set(true);
        task.wake(1);
    });
    world.run_for(LONG);
    assert!(seen_at.get() >= 1_000_000_000 && seen_at.get() < 1_001_000_000, "{}", seen_at.get());
}

#[test]
fn the_driver_keeps_the_contract_in_fair_and_rough_weather() {
    for (seed, faults) in [Faults::default(), Faults::rough()].into_iter().enumerate() {
        for (name, scenario) in SCENARIOS {
            let world = World::new(seed as u64);
            let machine = world.add_machine(Faults::default());
            world.run_task(machine, LONG, |io| async move { io.make_dir(Path::new("/data")).await.unwrap() });
            world.faults(machine, |of_machine| *of_machine = faults.clone());
            let task = world.start(machine, 0, &Wakers::new(1), |io| scenario(io, "/data".into()));
            let stopped = world.run_until(LONG, || world.cores(machine) == 0);
            assert!(task.is_done() && world.cores(machine) == 0, "{name}: {stopped:?}");
        }
    }
}

/// A little life with everything in it: its fingerprint, and what was seen.
fn life(seed: u64) -> (u64, Vec<String>) {
    let world = World::new(seed);
    let server = world.add_machine(Faults::hostile());
    let client = world.add_machine(Faults::hostile());
    let log = Rc::new(RefCell::new(Vec::new()));
    for round in 0..5 {
        let address = echo(&world, server, Duration::from_micros(100));
        let io = world.spawn_core(server, 1, &Wakers::new(2));
        let task = io.clone();
        io.spawn(Class::Background, async move {
            let Ok(file) = task.open(Path::new(&format!("/wal{round}")), OpenHow::Create).await else { return };
            for block in 0.. {
                let _ = put(&task, &file, block % 50, 1, block as u8, block % 3 == 0).await;
            }
        });
        for _ in 0..3 {
            let io = world.spawn_core(client, 0, &Wakers::new(1));
            let (task, log) = (io.clone(), log.clone());
            io.spawn(Class::Foreground, async move {
                for _ in 0..20 {
                    let got = talk(task.clone(), address, 20_000).await;
                    log.borrow_mut().push(format!("{} {got:?}", task.now().0));
                }
            });
        }
        world.crash_at_op(server, world.disk_ops(server) + 300, CrashSite::During);
        world.run_for(Duration::from_secs(2));
        world.crash(server);
        log.borrow_mut().push(format!("{:?}", world.tree(server)));
    }
    let mut log = log.take();
    log.push(format!("{:?}", world.stats()));
    (world.fingerprint(), log)
}

#[test]
fn the_same_seed_gives_the_same_world_and_another_seed_another() {
    let first = life(1);
    assert_eq!(first, life(1));
    assert_ne!(first.0, life(2).0);
    assert!(first.1.len() > 20, "{:?}", first.1);
}

#[test]
fn a_stream_between_two_cores_ends_when_its_parcel_is_dropped() {
    let (world, server) = world(8);
    let client = world.add_machine(Faults::default());
    let address = SocketAddr::new(World::ip(server), 7);
    let task = world.start(server, 0, &Wakers::new(1), move |io| async move {
        let listener = io.listen(address).await.unwrap();
        let (socket, _) = io.accept(&listener).await.unwrap();
        drop(io.detach(socket).await.unwrap());
        io.sleep(LONG).await;
    });
    let got = world.run_task(client, LONG, |io| async move {
        let socket = io.connect(address).await.unwrap();
        io.receive(&socket).await.map(|chunks| chunks.len())
    });
    assert!(got.is_ok_and(|chunks| chunks == 0) && !task.is_done());
}

#[test]
fn who_hears_no_answer_across_a_one_way_cut_is_reset() {
    let (world, server) = world(8);
    let client = world.add_machine(Faults::default());
    let address = echo(&world, server, LONG);
    let inner = world.clone();
    let got = world.run_task(client, LONG, |io| async move {
        let socket = io.connect(address).await.unwrap();
        inner.cut(server, client);
        io.send(&socket, vec![1; 10]).await.unwrap();
        io.receive(&socket).await.map(|_| ())
    });
    assert_eq!((code(got), seen(&world, "reset after a stall")), (libc::ECONNRESET, 1));
}
