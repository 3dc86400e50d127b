//! After the first steps a rank allocates nothing at all: a counting allocator, with a stack for each allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::Mutex;
use std::time::Duration;

use plan::Chooser;
use runtime::{Executor, RankMemory, StepInput};
use testkit::Small;
use train::synthetic::Synthetic;
use train::{TrainError, assemble, ranks};

thread_local! {
    static COUNTING: Cell<bool> = const { Cell::new(false) };
}

static STACKS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; what is recorded beside it allocates only while
// counting is switched off for this thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTING.with(|c| c.replace(false)) {
            let stack = Backtrace::force_capture().to_string();
            STACKS.lock().unwrap().push(stack);
            COUNTING.with(|c| c.set(true));
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `alloc` above with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn after_the_first_steps_nothing_is_allocated() {
    assert_eq!(counted(|| drop(std::hint::black_box(vec![1u8]))), 1, "the counter counts");
    for layout in
        ["dp=2,tp=2;num_microbatches=2", "pp=2,cp=2;zero=3", "dp=2,tp=2;sequence=true;zero=2;recompute=full"]
    {
        let config = Small { num_layers: 2, batch: 8, ..Small::default() }.layout(layout);
        let built = assemble::model(&config, None).unwrap();
        let stepper = assemble::training(&config, &built).unwrap();
        ranks::run(stepper.plan.mesh.world_size(), Duration::from_secs(60), |world| {
            let pipeline_rank = stepper.plan.mesh.coord(world.rank()).get(mesh::Axis::Pp);
            let program = stepper.shared(pipeline_rank, &Chooser::Policy, false)?;
            let reserved = RankMemory::of(&[(&program.0, &program.1)], 1).arena_bytes();
            let mut executor = Executor::new(world, vec![program], kernels::Cpu::single(), None)?;
            assert_eq!(executor.arena_bytes(), reserved, "what was said beforehand is what is reserved");
            executor.initialise(&stepper.graph, 1)?;
            for step in 1..=4 {
                let mut batch = Synthetic::of(&built, 1, step);
                let scalars = [("lr", 1e-3), ("step", step as f64)];
                // The pool of message buffers settles in the first steps.
                COUNTING.with(|c| c.set(step > 2));
                let result = executor.run(0, &mut batch, &StepInput { seed: 1, step, scalars: &scalars });
                COUNTING.with(|c| c.set(false));
                result?;
            }
            Ok::<(), TrainError>(())
        })
        .unwrap();
    }
    let stacks = STACKS.lock().unwrap();
    assert!(stacks.is_empty(), "{} allocations, the first by\n{}", stacks.len(), stacks[0]);
}

/// Allocations of `work` on this thread, which are then forgotten.
fn counted(work: impl FnOnce()) -> usize {
    COUNTING.with(|c| c.set(true));
    work();
    COUNTING.with(|c| c.set(false));
    STACKS.lock().unwrap().drain(..).count()
}
