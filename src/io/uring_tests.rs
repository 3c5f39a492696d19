//! The contract on io_uring, and what only this driver has: short sends, a buffer ring that runs dry, a full completion queue, wakes.

use super::contract::{SCENARIOS, Scenario, pair, receive_up_to};
use super::driver::Driver;
use super::executor::Executor;
use super::uring::{UringConfig, UringDriver, slabs_fit};
use super::wakers::Wakers;
use super::{Class, Io};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("ringkv-io-{}-{:x}", std::process::id(), super::host::random_u64()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn small() -> UringConfig {
    UringConfig {
        submissions: 64,
        completions: 256,
        descriptors: 2048,
        receive_buffers: 64,
        receive_buffer_bytes: 16384,
        ..UringConfig::default()
    }
}

fn executor(config: UringConfig, core: usize, wakers: &Wakers) -> Executor {
    let driver = UringDriver::new(config, core, wakers).expect("a ring");
    Executor::new(Driver::Uring(Box::new(driver)), core, wakers.clone())
}

fn run(name: &str, config: UringConfig, scenario: Scenario) {
    let folder = Folder::new();
    let mut executor = executor(config, 0, &Wakers::new(1));
    let io = executor.handle();
    let path = folder.0.clone();
    let (watch, name) = (io.clone(), name.to_string());
    drop(io.spawn(Class::Foreground, async move {
        watch.sleep(LIMIT).await;
        assert!(watch.is_shutting_down(), "{name}: takes too long");
    }));
    executor.run(scenario(io.clone(), path));
    assert!(executor.is_finished());
    let Driver::Uring(driver) = &*io.inner.driver.borrow() else { panic!("another driver") };
    assert_eq!(driver.open_descriptors(), 0, "descriptors leak");
}

#[test]
fn the_driver_keeps_the_contract() {
    for (name, scenario) in SCENARIOS {
        run(name, small(), *scenario);
    }
}

#[test]
fn the_contract_holds_without_deferred_task_run_direct_descriptors_and_fixed_buffers() {
    for (name, scenario) in SCENARIOS {
        run(name, UringConfig { deferred: false, direct: false, fixed_buffers: false, ..small() }, *scenario);
    }
}

#[test]
fn the_contract_holds_with_tiny_queues_and_few_buffers() {
    let tiny = UringConfig { submissions: 4, completions: 8, receive_buffers: 2, receive_buffer_bytes: 512, ..small() };
    for (name, scenario) in SCENARIOS {
        if *name != "a reader that stops holds the sender up and loses nothing" {
            run(name, tiny.clone(), *scenario);
        }
    }
}

#[test]
fn short_sends_go_on() {
    run("short sends", UringConfig { send_buffer_bytes: Some(4096), ..small() }, |io, _| {
        Box::pin(async move {
            let (near, far) = pair(&io).await;
            let sent: Vec<u8> = (0..4_000_000u32).map(|number| (number % 251) as u8).collect();
            let (sender, bytes) = (io.clone(), sent.clone());
            let sending = io.spawn(Class::Foreground, async move { sender.send(&near, bytes).await.map(|_| near) });
            assert!(receive_up_to(&io, &far, sent.len()).await == sent);
            sending.await.unwrap();
        })
    });
}

#[test]
fn receives_that_found_no_buffer_go_on_when_there_is_one() {
    run("no buffers", UringConfig { receive_buffers: 4, receive_buffer_bytes: 256, ..small() }, |io, _| {
        Box::pin(async move {
            let mut pairs = Vec::new();
            for _ in 0..20 {
                pairs.push(pair(&io).await);
            }
            for (number, (near, _)) in pairs.iter().enumerate() {
                io.send(near, vec![number as u8; 3000]).await.unwrap();
            }
            // Chunks that are held keep their buffers; copies are made when few are left.
            let mut held = Vec::new();
            for (_, far) in &pairs {
                held.push(io.receive(far).await.unwrap());
            }
            for (number, (_, far)) in pairs.iter().enumerate() {
                let got: usize = held[number].iter().map(|chunk| chunk.len()).sum();
                assert!(held[number].iter().all(|chunk| chunk.iter().all(|byte| *byte == number as u8)));
                assert_eq!(receive_up_to(&io, far, 3000 - got).await, vec![number as u8; 3000 - got]);
            }
        })
    });
}

#[test]
fn a_full_completion_queue_loses_nothing() {
    run("full queue", UringConfig { submissions: 8, completions: 16, ..small() }, |io, dir| {
        Box::pin(async move {
            let file = io.open(&dir.join("file"), super::op::OpenHow::Create).await.unwrap();
            let tasks: Vec<_> = (0..500u64)
                .map(|number| {
                    let (io, file) = (io.clone(), file.clone());
                    io.clone().spawn(Class::Foreground, async move {
                        let mut buf = io.buf(4096);
                        buf.fill(number as u8);
                        io.write(&file, number * 4096, buf, false).await.unwrap();
                        let buf = io.read(&file, number * 4096, 4096).await.unwrap();
                        assert!(buf.iter().all(|byte| *byte == number as u8));
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
        })
    });
}

#[test]
fn a_large_file_dies_in_steps_unless_another_name_holds_it() {
    run("large file", small(), |io, dir| {
        Box::pin(async move {
            let (a, b) = (dir.join("a"), dir.join("b"));
            let file = io.open(&a, super::op::OpenHow::Create).await.unwrap();
            io.resize(&file, 300 << 20).await.unwrap();
            io.link(&a, &b).await.unwrap();
            io.remove(&a).await.unwrap();
            assert_eq!(io.size(&file).await.unwrap(), 300 << 20, "the other name still holds it");
            io.remove(&b).await.unwrap();
            assert!(io.size(&file).await.unwrap() <= 64 << 20, "it was truncated first");
            assert!(io.list(&dir).await.unwrap().is_empty());
        })
    });
}

/// A core that answers each number in its cell by adding it up, until `rounds` were taken.
fn adder(core: usize, wakers: Wakers, cells: Arc<[AtomicU64; 2]>, rounds: u64) -> impl FnOnce() + Send {
    move || {
        let mut executor = executor(small(), core, &wakers);
        executor.set_spin(Duration::ZERO);
        let io: Io = executor.handle();
        let inbox = cells.clone();
        let seen = std::rc::Rc::new(std::cell::Cell::new(0));
        let last = seen.clone();
        io.set_inbox(Box::new(move || inbox[core].load(Ordering::Relaxed) > last.get()));
        executor.run(async move {
            if core == 0 {
                cells[1].store(1, Ordering::Relaxed);
                io.wake(1);
            }
            while seen.get() < rounds {
                io.within(LIMIT, io.inbox()).await.expect("no wake is lost");
                seen.set(cells[core].load(Ordering::Relaxed));
                cells[1 - core].store(seen.get() + 1, Ordering::Relaxed);
                io.wake(1 - core);
            }
        });
    }
}

#[test]
fn two_cores_that_park_after_each_message_never_lose_a_wake() {
    let wakers = Wakers::new(2);
    let cells = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let threads: Vec<_> =
        (0..2).map(|core| super::host::spawn_thread("adder", adder(core, wakers.clone(), cells.clone(), 20_000)).unwrap()).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_thread_without_a_ring_wakes_a_parked_core() {
    let wakers = Wakers::new(1);
    let cell = Arc::new(AtomicU64::new(0));
    let (core_wakers, core_cell) = (wakers.clone(), cell.clone());
    let thread = super::host::spawn_thread("core", move || {
        let mut executor = executor(small(), 0, &core_wakers);
        let io = executor.handle();
        let inbox = core_cell.clone();
        io.set_inbox(Box::new(move || inbox.load(Ordering::Relaxed) > 0));
        executor.run(async move {
            for _ in 0..200 {
                io.within(LIMIT, io.inbox()).await.expect("no wake is lost");
                core_cell.store(0, Ordering::Relaxed);
            }
        });
    });
    let thread = thread.unwrap();
    while !thread.is_finished() {
        if cell.load(Ordering::Relaxed) == 0 {
            cell.store(1, Ordering::Relaxed);
            wakers.wake_from_outside(0);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    thread.join().unwrap();
}

#[test]
fn a_driver_that_is_dropped_in_flight_ends_what_it_began() {
    let wakers = Wakers::new(1);
    let folder = Folder::new();
    let executor = executor(small(), 0, &wakers);
    let io = executor.handle();
    let mut executor = executor;
    let (task_io, path) = (io.clone(), folder.0.join("file"));
    drop(io.spawn(Class::Foreground, async move {
        let (near, _far) = pair(&task_io).await;
        let file = task_io.open(&path, super::op::OpenHow::Create).await.unwrap();
        let write = task_io.write(&file, 0, task_io.buf(1 << 20), true);
        let receive = task_io.receive(&near);
        let _ = task_io.within(LIMIT, async { (write.await.unwrap(), receive.await.unwrap()) }).await;
    }));
    drop(io);
    for _ in 0..50 {
        executor.turn();
    }
    let start = super::host::mono();
    drop(executor);
    assert!(super::host::mono().since(start) < Duration::from_secs(2), "draining takes no time");
}

#[test]
fn a_recording_gives_every_prefix_with_unsynced_writes_dropped() {
    let folder = Folder::new();
    let source = folder.0.join("source");
    std::fs::create_dir(&source).unwrap();
    let recording = super::recording::Recording::new(&source);
    let wakers = Wakers::new(1);
    let mut driver = UringDriver::new(small(), 0, &wakers).unwrap();
    driver.record(recording.clone());
    let mut executor = Executor::new(Driver::Uring(Box::new(driver)), 0, wakers);
    let io = executor.handle();
    let dir = source.clone();
    executor.run(async move {
        let file = io.open(&dir.join("new"), super::op::OpenHow::Create).await.unwrap();
        let block = |byte: u8| {
            let mut buf = io.buf(4096);
            buf.fill(byte);
            buf
        };
        io.sync_dir(&dir).await.unwrap();
        io.write(&file, 0, block(1), true).await.unwrap();
        io.write(&file, 4096, block(2), false).await.unwrap();
        io.sync(&file).await.unwrap();
        io.write(&file, 4096, block(3), false).await.unwrap();
        io.rename(&dir.join("new"), &dir.join("final")).await.unwrap();
    });
    assert_eq!(recording.len(), 7);
    let state = |n: usize, keep: bool| {
        let target = folder.0.join(format!("at-{n}-{keep}"));
        recording.apply_prefix(n, &target, &mut |_| keep).unwrap();
        let (new, last) = (std::fs::read(target.join("new")), std::fs::read(target.join("final")));
        let name = if new.is_ok() {
            "new"
        } else if last.is_ok() {
            "final"
        } else {
            ""
        };
        (name, new.or(last).unwrap_or_default().chunks(4096).map(|block| block[0]).collect::<Vec<u8>>())
    };
    assert_eq!(state(1, false), ("", vec![]));
    assert_eq!(state(1, true), ("new", vec![]));
    assert_eq!(state(3, false), ("new", vec![1]));
    assert_eq!(state(4, false), ("new", vec![1]));
    assert_eq!(state(4, true), ("new", vec![1, 2]));
    assert_eq!(state(5, false), ("new", vec![1, 2]));
    assert_eq!(state(7, false), ("new", vec![1, 2]));
    assert_eq!(state(7, true), ("final", vec![1, 3]));
}

#[test]
fn a_close_with_unread_bytes_is_a_reset_for_the_peer() {
    run("reset", small(), |io, _| {
        Box::pin(async move {
            let (near, far) = pair(&io).await;
            io.send(&near, vec![1; 100]).await.unwrap();
            io.sleep(Duration::from_millis(20)).await;
            drop(far);
            let error = io.within(LIMIT, io.receive(&near)).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            let again = io.receive(&near).await.unwrap_err();
            assert_eq!(again.kind(), std::io::ErrorKind::ConnectionReset, "an error stays");
        })
    });
}

#[test]
fn a_full_table_of_descriptors_refuses_and_recovers() {
    run("full table", UringConfig { descriptors: 8, ..small() }, |io, _| {
        Box::pin(async move {
            let mut pairs = Vec::new();
            for _ in 0..3 {
                pairs.push(pair(&io).await);
            }
            let listener = io.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let connected = io.connect(listener.address()).await.unwrap();
            let full = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
            full(io.accept(&listener).await.unwrap_err());
            full(io.listen("127.0.0.1:0".parse().unwrap()).await.unwrap_err());
            assert!(io.receive(&connected).await.is_ok_and(|chunks| chunks.is_empty()), "the peer sees the end");
            drop((pairs.pop(), connected));
            io.sleep(Duration::from_millis(10)).await;
            let _connected = io.connect(listener.address()).await.unwrap();
            io.accept(&listener).await.unwrap();
            drop(listener);
            io.sleep(Duration::from_millis(10)).await;
            pair(&io).await;
        })
    });
}

#[test]
fn connections_that_nobody_took_are_closed() {
    run("untaken", small(), |io, _| {
        Box::pin(async move {
            let listener = io.listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let first = io.connect(listener.address()).await.unwrap();
            drop(io.accept(&listener).await.unwrap());
            let others = [io.connect(listener.address()).await.unwrap(), io.connect(listener.address()).await.unwrap()];
            io.sleep(Duration::from_millis(20)).await;
            drop(listener);
            for socket in others.iter().chain([&first]) {
                let end = io.within(LIMIT, io.receive(socket)).await.expect("it ends");
                assert!(end.is_err() || end.is_ok_and(|chunks| chunks.is_empty()));
            }
        })
    });
}

/// Makes `io_uring_setup` fail with EPERM in this thread, as container runtimes do.
fn forbid_io_uring() {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions live through the call, which copies them; it holds for this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn a_host_that_forbids_io_uring_is_named() {
    let text = super::host::spawn_thread("forbidden", || {
        forbid_io_uring();
        UringDriver::new(small(), 0, &Wakers::new(1)).map(|_| ()).unwrap_err().to_string()
    });
    let text = text.unwrap().join().unwrap();
    assert!(text.contains("forbidden") && text.contains("seccomp"), "{text}");
}

#[test]
fn the_disk_buffers_are_registered_where_there_is_room() {
    use crate::limits::POOL_SLAB_BYTES;
    assert!(slabs_fit(2, 4 * POOL_SLAB_BYTES as u64) && slabs_fit(256, u64::MAX));
    assert!(!slabs_fit(2, 4 * POOL_SLAB_BYTES as u64 - 1) && !slabs_fit(1, 0));
    let driver = UringDriver::new(small(), 0, &Wakers::new(1)).unwrap();
    assert_eq!(driver.fixed_buffers, !driver.degraded().iter().any(|line| line.contains("disk buffers")));
    let driver = UringDriver::new(UringConfig { fixed_buffers: false, ..small() }, 0, &Wakers::new(1)).unwrap();
    assert!(!driver.fixed_buffers && !driver.degraded().iter().any(|line| line.contains("disk buffers")));
}

#[test]
fn what_a_host_lacks_is_said() {
    let driver = UringDriver::new(small(), 0, &Wakers::new(1)).unwrap();
    assert!(driver.degraded().len() <= 4, "a line for each thing that is missing");
    for error in [libc::ENOSYS, libc::EPERM, libc::ENOMEM, libc::EIO] {
        let text = super::uring::UringError::from(std::io::Error::from_raw_os_error(error)).to_string();
        assert!(text.len() > 20, "{text}");
    }
}

#[test]
fn a_connection_goes_to_another_core_with_what_it_had_received() {
    let wakers = Wakers::new(2);
    let (parcels, arriving) = super::spsc::channel::<(super::op::Parcel, Vec<u8>)>(4);
    let other_wakers = wakers.clone();
    let other = super::host::spawn_thread("other", move || {
        let mut executor = executor(small(), 1, &other_wakers);
        let io = executor.handle();
        let arriving = std::rc::Rc::new(arriving);
        let inbox = arriving.clone();
        io.set_inbox(Box::new(move || !inbox.is_empty()));
        executor.run(async move {
            for _ in 0..10 {
                io.within(LIMIT, io.inbox()).await.expect("a parcel");
                let (parcel, mut bytes) = arriving.pop().expect("the inbox said so");
                let socket = io.attach(parcel).await.unwrap();
                bytes.extend(receive_up_to(&io, &socket, 10 - bytes.len()).await);
                io.send(&socket, bytes).await.unwrap();
                assert!(io.receive(&socket).await.unwrap().is_empty());
            }
        });
    });
    let mut executor = executor(small(), 0, &wakers);
    let io = executor.handle();
    executor.run(async move {
        for round in 0..10 {
            let (near, far) = pair(&io).await;
            io.send(&near, vec![round; 5]).await.unwrap();
            drop(receive_up_to(&io, &far, 1).await);
            io.send(&near, vec![round + 1; 5]).await.unwrap();
            let parcel = io.detach(far).await.unwrap();
            parcels.push(parcel).unwrap();
            io.wake(1);
            io.send(&near, vec![round + 2; 5]).await.unwrap();
            let back = io.within(LIMIT, receive_up_to(&io, &near, 10)).await.expect("an answer from there");
            assert_eq!(back, [vec![round + 1; 5], vec![round + 2; 5]].concat());
        }
    });
    other.unwrap().join().unwrap();
}
