//! A step allocates nothing: every operation, once warm, runs without the allocator. In a binary of its own because
//! the allocator is the process's.

use comm::threads::{Options, World};
use comm::{Communicator, Reduce};
use memory::{Arena, DType, Span};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if ARMED.load(Ordering::Relaxed) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: as required of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as required of the caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn step(c: &dyn Communicator, arena: &Arena, len: usize) {
    let n = c.world_size();
    let (one, all) = (Span::new(0, len), Span::new(1 << 20, n * len));
    let (read, write) = (|s| arena.read(s).unwrap(), |s| arena.write(s).unwrap());
    c.all_reduce(write(one), DType::F32, Reduce::Sum).unwrap().wait().unwrap();
    c.reduce_scatter(read(all), write(one), DType::F32, Reduce::Max).unwrap().wait().unwrap();
    c.all_gather(read(one), write(all)).unwrap().wait().unwrap();
    c.all_to_all(read(all), write(Span::new(2 << 20, n * len))).unwrap().wait().unwrap();
    c.broadcast(write(one), n - 1).unwrap().wait().unwrap();
    let sent = c.send(read(one), (c.rank() + 1) % n, 5).unwrap();
    c.recv(write(Span::new(3 << 20, len)), (c.rank() + n - 1) % n, 5).unwrap().wait().unwrap();
    sent.wait().unwrap();
    c.barrier().unwrap();
}

#[test]
fn operations_do_not_allocate() {
    std::thread::scope(|scope| {
        for c in World::new(4, Options { verify: true, ..Options::default() }) {
            scope.spawn(move || {
                let arena = Arena::reserve(4 << 20).unwrap();
                let pair = c.split(&[c.rank() & 2, c.rank() | 1], "tp").unwrap();
                for round in 0..60 {
                    if round == 10 {
                        c.barrier().unwrap();
                        ARMED.store(true, Ordering::Relaxed);
                    }
                    for len in [64, 100_000] {
                        step(&c, &arena, len);
                        step(&*pair, &arena, len);
                    }
                }
                c.barrier().unwrap();
                ARMED.store(false, Ordering::Relaxed);
                c.barrier().unwrap();
            });
        }
    });
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), 0);
}
