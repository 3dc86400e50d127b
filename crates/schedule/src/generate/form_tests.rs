//! Tests: bubble and memory of every schedule against closed forms and published figures.

use super::*;

/// Three given triples of `F`, `I`, `W`, then drawn ones; whole numbers, so that sums are exact.
fn times() -> Vec<(f64, f64, f64)> {
    let mut seed = 7u64;
    let mut draw = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (1 + (seed >> 33) % 20) as f64
    };
    let mut times = vec![(1.0, 1.0, 1.0), (2.0, 3.0, 1.0), (3.0, 4.0, 3.0)];
    times.extend((0..9).map(|_| (draw(), draw(), draw())));
    times
}

/// Peak on a rank, given its number.
type Peak = Box<dyn Fn(usize) -> usize>;

fn check(
    name: &str,
    (p, m, v): (usize, usize, usize),
    bubble: impl Fn(f64, f64, f64) -> Option<f64>,
    peak: Peak,
) {
    let schedule = generate(name, p, m, v).unwrap();
    schedule.check().unwrap();
    let peaks: Vec<usize> = (0..p).map(peak).collect();
    assert_eq!(schedule.peak_live(), peaks, "{name} p {p} m {m} v {v}");
    schedule.check_memory(*peaks.iter().max().unwrap()).unwrap();
    for (f, i, w) in times() {
        let Some(expected) = bubble(f, i, w) else { continue };
        let found = schedule.simulate(&Times::new(f, i, w)).unwrap().bubble;
        assert_eq!(found, expected, "{name} p {p} m {m} v {v} times {f} {i} {w}");
    }
}

#[test]
fn fused_schedules() {
    for p in 2..=16 {
        let last = (p - 1) as f64;
        let bubble = |f: f64, i: f64, w: f64| Some(last * (f + i + w));
        for m in [1, p - 1, p, p + 1, 2 * p, 3 * p + 1] {
            check("gpipe", (p, m, 1), bubble, Box::new(move |_| m));
            check("1f1b", (p, m, 1), bubble, Box::new(move |d| m.min(p - d)));
        }
        for v in 1..=4 {
            for m in [p, p + 1, 2 * p, 3 * p + 1] {
                check("looped", (p, m, v), bubble, Box::new(move |_| m * v));
            }
            for m in [p, 2 * p, 4 * p] {
                let peak = move |d| (m * v).min(2 * (p - d - 1) + (v - 1) * p + 1);
                check("interleaved", (p, m, v), bubble, Box::new(peak));
            }
        }
    }
}

#[test]
fn handcrafted_zero_bubble_schedules() {
    for p in 2..=16 {
        let last = (p - 1) as f64;
        for m in [p, p + 1, 2 * p, 3 * p, 5 * p + 1] {
            // The form of the whole step from first to last. The longest rank loses less of it where F is
            // the longest, as no rank both starts first and ends last.
            let form = |f: f64, i: f64, w: f64| last * f.max(i).max(f + i - w);
            let span = |f: f64, i: f64, w: f64| (f <= i.max(f + i - w)).then(|| form(f, i, w));
            check("zb-h1", (p, m, 1), span, Box::new(move |_| p));
            let schedule = generate("zb-h1", p, m, 1).unwrap();
            for (f, i, w) in times() {
                let timeline = schedule.simulate(&Times::new(f, i, w)).unwrap();
                assert_eq!(timeline.makespan - timeline.work[0], form(f, i, w), "p {p} m {m} {f} {i} {w}");
                assert!(timeline.bubble <= form(f, i, w));
            }
        }
        for m in [2 * p - 1, 2 * p, 3 * p, 5 * p + 1] {
            let bubble = |f: f64, i: f64, w: f64| Some(last * (f + i - 2.0 * w).max(i - f).max(0.0));
            check("zb-h2", (p, m, 1), bubble, Box::new(move |_| 2 * p - 1));
        }
    }
}

#[test]
fn schedules_in_a_v() {
    for p in 2..=16 {
        let last = (p - 1) as f64;
        for m in [2 * p - 1, 2 * p, 3 * p, 4 * p + 1] {
            let bubble = |f: f64, i: f64, w: f64| (i >= f && f >= w).then_some(2.0 * last * (i - w));
            check("zb-v", (p, m, 2), bubble, Box::new(move |_| 2 * p));
        }
        for m in [2 * p, 3 * p, 4 * p + 1] {
            let schedule = generate("dualpipe-v", p, m, 2).unwrap();
            assert_eq!(schedule.peak_live().into_iter().max(), Some(2 * p + 1), "p {p} m {m}");
            for (f, i, w) in [(1.0, 1.0, 1.0), (3.0, 3.0, 2.0)] {
                let found = schedule.simulate(&Times::new(f, i, w)).unwrap().bubble;
                assert_eq!(found, last * (f + i + w + (i + w) - 3.0 * w), "p {p} m {m} {f} {i} {w}");
            }
        }
    }
    let schedule = generate("dualpipe-v", 4, 8, 2).unwrap();
    assert_eq!(schedule.simulate(&Times::new(2.0, 3.0, 1.0)).unwrap().bubble, 19.0);
    // One after the other a pair waits for less.
    let apart = Schedule { overlaps: Vec::new(), ..schedule };
    assert_eq!(apart.simulate(&Times::new(1.0, 1.0, 1.0)).unwrap().bubble, 3.0);
}

#[test]
fn published_bubbles_of_measured_profiles() {
    // Qi et al., "Zero Bubble Pipeline Parallelism", 2023, tables of profiles and bubbles (ms).
    let measured = [
        (8, 24, 18.522, 18.086, 9.337, 0.601, 0.2431, 0.1585),
        (8, 24, 29.718, 29.444, 19.927, 0.527, 0.2347, 0.1323),
        (16, 48, 11.347, 11.248, 8.132, 0.377, 0.2552, 0.1397),
        (32, 96, 10.419, 10.207, 7.715, 0.408, 0.2646, 0.1421),
    ];
    for (p, m, forward, input, weight, comm, one_f_one_b, zb_h1) in measured {
        let times = Times { forward, input, weight, comm };
        for (name, bubble) in [("1f1b", one_f_one_b), ("zb-h1", zb_h1)] {
            let timeline = generate(name, p, m, 1).unwrap().simulate(&times).unwrap();
            let found = timeline.bubble_fraction();
            assert!((found - bubble).abs() < 5e-5, "{name} p {p}: {found}, published {bubble}");
        }
    }
}

/// Bubbles of all times, in units of a whole backward and forward of a rank.
fn bubbles(schedule: &Schedule, v: usize) -> Vec<f64> {
    let of = |(f, i, w)| schedule.simulate(&Times::new(f, i, w)).unwrap().bubble / v as f64;
    times().into_iter().map(of).collect()
}

#[test]
fn more_memory_never_makes_a_schedule_worse_than_its_family() {
    let families: [(usize, &[&str]); 4] = [
        (1, &["gpipe", "1f1b"]),
        (2, &["looped", "interleaved"]),
        (3, &["looped", "interleaved"]),
        (1, &["zb-h1", "zb-h2"]),
    ];
    for (v, family) in families {
        for p in 2..=8 {
            for m in (1..=3 * p).filter(|m| m % p == 0 || family[0] != "looped") {
                let made = family.iter().map(|name| generate(name, p, m, v).unwrap());
                let made: Vec<Schedule> = made.collect();
                for (one, other) in made.iter().flat_map(|one| made.iter().map(move |other| (one, other))) {
                    if other.peak_live().iter().max() > one.peak_live().iter().max() {
                        continue;
                    }
                    for (mine, its) in bubbles(one, v).into_iter().zip(bubbles(other, v)) {
                        assert!(
                            mine <= its,
                            "{} {mine}, {} {its} (p {p}, m {m}, v {v})",
                            one.name,
                            other.name
                        );
                    }
                }
            }
        }
    }
    // And what splits the backward is never worse than what does not.
    for (p, m) in (2..=8).flat_map(|p| [(p, p), (p, 3 * p)]) {
        let [fused, split] = ["1f1b", "zb-h1"].map(|name| bubbles(&generate(name, p, m, 1).unwrap(), 1));
        assert!(fused.iter().zip(&split).all(|(fused, split)| split <= fused));
    }
}

#[test]
fn auto_is_never_worse_than_a_named_schedule_of_its_memory() {
    for (p, m) in [(2, 4), (3, 7), (4, 8)] {
        for (forward, input, weight) in times().into_iter().take(4) {
            let times = Times { comm: 0.25, ..Times::new(forward, input, weight) };
            for v in 1..=2 {
                let mut best = f64::INFINITY;
                let mut named: Vec<(usize, f64)> = Vec::new();
                for generator in
                    generators().iter().filter(|g| g.name != "auto" && g.chunks.is_none_or(|c| c == v))
                {
                    let Ok(schedule) = generate(generator.name, p, m, v) else { continue };
                    let bubble = schedule.simulate(&times).unwrap().bubble;
                    named.push((schedule.peak_live().into_iter().max().unwrap(), bubble));
                }
                named.sort_by(|one, other| one.partial_cmp(other).unwrap());
                named.dedup_by_key(|(peak, _)| *peak);
                for (peak, bubble) in named {
                    let request = Request { times, memory_cap: Some(peak), ..Request::new(p, m, v) };
                    let auto = find("auto").unwrap().generate(&request).unwrap();
                    auto.check().unwrap();
                    auto.check_memory(peak).unwrap();
                    best = bubble.min(best);
                    let found = auto.simulate(&times).unwrap().bubble;
                    assert!(found <= best + 1e-9, "p {p} m {m} v {v} cap {peak}: {found}, named {best}");
                }
            }
        }
    }
}

/// V-Half and V-Min of Qi et al., "Pipeline Parallelism with Controllable Memory", 2024: half of 1F1B's
/// memory with about half of its bubble, a third of it with about its bubble.
#[test]
fn auto_finds_schedules_of_little_memory() {
    for (p, m) in [(4, 8), (4, 16), (8, 16), (8, 24)] {
        let auto = |cap: usize| {
            let request = Request { memory_cap: Some(cap), ..Request::new(p, m, 2) };
            let auto = find("auto").unwrap().generate(&request).unwrap();
            auto.check_memory(cap).unwrap();
            auto.simulate(&request.times).unwrap().bubble
        };
        // In the time of a half chunk 1F1B's bubble is 6 (p - 1).
        let one_f_one_b = 6.0 * (p - 1) as f64;
        assert_eq!(auto(2 * p), 0.0, "the memory of 1F1B");
        assert!(auto(p + 2) <= one_f_one_b / 2.0, "V-Half {p} {m}: {}", auto(p + 2));
        assert!(auto(2 * p / 3 + 2) <= 1.2 * one_f_one_b, "V-Min {p} {m}: {}", auto(2 * p / 3 + 2));
    }
}

#[test]
fn auto_orders_whatever_takes_no_time() {
    for (forward, input, weight) in [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 0.0), (1.0, 1.0, 0.0)] {
        for (p, v, cap) in [(1, 1, 1), (3, 1, 2), (3, 2, 2), (2, 4, 5)] {
            let times = Times::new(forward, input, weight);
            let request = Request { times, memory_cap: Some(cap), ..Request::new(p, 5, v) };
            let auto = find("auto").unwrap().generate(&request).unwrap();
            auto.check().unwrap();
        }
    }
}

#[test]
fn large_schedules_take_little_time() {
    let clock = std::time::Instant::now();
    let schedule = generate("interleaved", 64, 512, 4).unwrap();
    schedule.check().unwrap();
    assert_eq!(schedule.simulate(&Times::new(1.0, 1.0, 1.0)).unwrap().bubble, 189.0);
    // A tenth of a second in a release build on one core; generous for slow and busy machines.
    assert!(clock.elapsed().as_secs_f64() < 10.0, "{:?}", clock.elapsed());
}
