//! The rules of the solver, one by one, as text. What is shown is the work done, then the answers.

mod world;

use expect_test::{Expect, expect};
use world::script;

fn check(graph: &str, commands: &str, expected: Expect) {
    expected.assert_eq(&script::run(graph, commands));
}

const DIAMOND: &str = "
    base  = run scratch 'make base'
    left  = run base 'make left'
    right = run base 'make right'
    out   = merge left right";

#[test]
fn shared_base_runs_once() {
    check(
        DIAMOND,
        "solve out",
        expect![[r#"
        exec base
        exec left
        exec right
        exec out
        = out: miss: no such key
    "#]],
    );
}

#[test]
fn a_second_build_loads_the_last_step_only() {
    check(
        DIAMOND,
        "solve out
         progress main
         discard main
         solve out
         progress main",
        expect![[r#"
            > solve out
            exec base
            exec left
            exec right
            exec out
            = out: miss: no such key
            > progress main
            base loaded
            left loaded
            right loaded
            out loaded
            base started
            base completed
            base started
            base completed
            left started
            right started
            left completed
            right completed
            out started
            out completed
            > discard main
            > solve out
            load out from r4
            = out: hit local r4
            > progress main
            base loaded
            left loaded
            right loaded
            out loaded
            base started
            base completed
            out started
            left skipped
            right skipped
            out completed cached
        "#]],
    );
}

#[test]
fn a_second_request_of_the_same_job_takes_what_is_there() {
    check(
        DIAMOND,
        "solve left
         solve out",
        expect![[r#"
            > solve left
            exec base
            exec left
            = left: miss: no such key
            > solve out
            exec right
            exec out
            = out: miss: no such key
        "#]],
    );
}

#[test]
fn private_files_match_by_content() {
    // Both contexts give the same file `a`.
    check(
        "one = local '1'
         two = local 'beta'
         first = run one:a~ 'copy'
         second = run two:a~ 'copy'
         third = run two:c~ 'copy'",
        "solve first
         solve second
         solve third",
        expect![[r#"
            > solve first
            exec one
            digest first input 0
            exec first
            = first: miss: no such key
            > solve second
            exec two
            digest second input 0
            = second: shared with first
            > solve third
            digest third input 0
            exec third
            = third: miss: content of input 0 changed
        "#]],
    );
}

#[test]
fn a_match_by_definition_evaluates_no_inputs() {
    check(
        "base = run scratch 'make'
         mid  = run base:a~ 'copy'
         out  = run mid~ 'run'",
        "solve out
         discard main
         solve out
         discard main
         evict r3
         solve out",
        expect![[r#"
            > solve out
            exec base
            digest mid input 0
            exec mid
            digest out input 0
            exec out
            = out: miss: no such key
            > discard main
            > solve out
            load out from r3
            = out: hit local r3
            > discard main
            > evict r3
            > solve out
            load base from r1
            digest mid input 0
            load mid from r2
            digest out input 0
            exec out
            = out: miss: no such key
        "#]],
    );
}

#[test]
fn inputs_without_a_match_are_evaluated_first() {
    // `known` matches by definition and is left alone until `fresh` decides that it is needed.
    check(
        "known = run scratch 'known'
         old   = run scratch 'old'
         fresh = run scratch 'fresh'
         first = run known~ old~ 'join'
         out   = run known~ fresh~ 'join'",
        "solve first
         discard main
         ask out
         end key known
         end key fresh
         end key out
         end exec fresh
         run",
        expect![[r#"
            > solve first
            exec known
            exec old
            digest first input 0
            digest first input 1
            exec first
            = first: miss: no such key
            > discard main
            > ask out
            > end key known
            > end key fresh
            > end key out
            exec fresh
            > end exec fresh
            digest out input 1
            > run
            load known from r1
            digest out input 0
            exec out
            = out: miss: content of input 1 changed
        "#]],
    );
}

#[test]
fn selectors_tell_parts_of_an_input_apart() {
    check(
        "base = run scratch 'make'
         a = run base:a 'use'
         b = run base:b 'use'
         again = run base:a 'use'",
        "solve a
         solve b
         solve again",
        expect![[r#"
            > solve a
            exec base
            exec a
            = a: miss: no such key
            > solve b
            exec b
            = b: miss: input 0 changed
            > solve again
            = again: shared with a
        "#]],
    );
}

#[test]
fn definition_links_carry_the_selector_and_content_links_do_not() {
    check(
        "base = run scratch 'make'
         out = run base:a~ base 'use'",
        "solve out
         keys",
        expect![[r#"
            > solve out
            exec base
            digest out input 0
            exec out
            = out: miss: no such key
            > keys
            base -(input 0, selected)-> key:1
            base -(input 1)-> key:1
            base = r1
            content -(input 0)-> key:1
            key:1 = r2
        "#]],
    );
}

#[test]
fn ignore_cache_runs_again_and_has_a_state_of_its_own() {
    check(
        "base = run scratch 'make'
         step = run base 'step'
         forced = run base 'step' ignore
         out = run forced 'out'",
        "solve step
         discard main
         solve forced
         solve out
         discard main
         solve out",
        expect![[r#"
            > solve step
            exec base
            exec step
            = step: miss: no such key
            > discard main
            > solve forced
            load base from r1
            exec forced
            = forced: miss: cache ignored by request
            > solve out
            exec out
            = out: miss: no such key
            > discard main
            > solve out
            load base from r1
            exec forced
            exec out
            = out: miss: input 0 changed
        "#]],
    );
}

#[test]
fn equal_keys_of_two_jobs_share_one_run() {
    check(
        "base1 = run scratch 'make'
         base2 = run scratch 'make'
         out1 = run base1 'run'
         out2 = run base2 'run'",
        "ask out1 as one
         ask out2 as two
         run
         progress two",
        expect![[r#"
            > ask out1 as one
            > ask out2 as two
            > run
            exec base1
            exec out1
            = out1 of one: miss: no such key
            = out2 of two: shared with out1
            > progress two
            base2 loaded
            out2 loaded
            base2 started
            base2 completed
            base2 started
            base2 completed
            out2 started
            out2 completed
        "#]],
    );
}

#[test]
fn work_goes_on_for_the_follower_when_the_leader_is_cancelled() {
    check(
        "out1 = run scratch 'make'
         out2 = run scratch 'make'",
        "ask out1 as one
         ask out2 as two
         end key out1
         end key out2
         stuck
         discard one
         run
         progress two",
        expect![[r#"
            > ask out1 as one
            > ask out2 as two
            > end key out1
            exec out1
            > end key out2
            > stuck
            `out1` 73b69a1929b8 at Slow, wanted Complete: executes as task 3
            `out2` d25f7a8e23b5 at Slow, wanted Complete: follows `out1` 73b69a1929b8
            > discard one
            = out1 of one: out1 failed: context canceled
            > run
            = out2 of two: shared with out1
            > progress two
            out2 loaded
            out2 started
            out2 completed
            out2 started
            out2 completed
        "#]],
    );
}

#[test]
fn work_that_nobody_wants_is_cancelled_and_may_begin_again() {
    check(
        "base = run scratch 'make'
         out = run base 'out'",
        "ask out
         end key base
         end key out
         withdraw out
         ask out
         end exec base
         run",
        expect![[r#"
            > ask out
            > end key base
            > end key out
            exec base
            > withdraw out
            cancel exec base
            > ask out
            > end exec base
            exec base
            > run
            exec out
            = out: miss: no such key
        "#]],
    );
}

#[test]
fn the_second_cache_map_is_asked_for_when_the_first_gives_no_record() {
    check(
        "old = image 'manifest 1' 'layers'
         new = image 'manifest 2' 'layers'
         out1 = run old 'run'
         out2 = run new 'run'",
        "solve out1
         discard main
         solve out2
         discard main
         solve old
         discard main
         ask old
         end key old
         run",
        expect![[r#"
            > solve out1
            exec old
            exec out1
            = out1: miss: no such key
            > discard main
            > solve out2
            load out2 from r2
            = out2: hit local r2
            > discard main
            > solve old
            load old from r1
            = old: hit local r1
            > discard main
            > ask old
            > end key old
            load old from r1
            > run
            = old: hit local r1
        "#]],
    );
}

#[test]
fn a_vertex_builds_others_while_it_runs() {
    check(
        "inner = run scratch 'inner' weight=1
         frontend = run scratch 'frontend' nested=inner weight=1
         out = run frontend 'out'",
        "ask out
         end key frontend
         end key out
         stuck
         run
         progress main",
        expect![[r#"
            > ask out
            > end key frontend
            > end key out
            exec frontend
            > stuck
            `out` 0e17a42e2f08 at Slow, wanted Complete: needs `frontend` e58b457e2346
            `frontend` e58b457e2346 at Slow, wanted Complete: executes as task 3, builds `inner` ac37f109a0ab
            `inner` ac37f109a0ab at Initial, wanted Complete: cache map as task 4
            > run
            exec inner
            exec out
            = out: miss: no such key
            > progress main
            frontend loaded
            out loaded
            frontend started
            frontend completed
            frontend started
            inner loaded
            inner started
            inner completed
            inner started
            inner completed
            frontend completed
            out started
            out completed
        "#]],
    );
}

#[test]
fn a_record_that_cannot_be_loaded_is_not_an_error() {
    check(
        "base = run scratch 'make'
         out = run base 'out'",
        "solve out
         discard main
         vanish r2
         solve out
         discard main
         vanish r1
         vanish r3
         solve out
         progress main",
        expect![[r#"
            > solve out
            exec base
            exec out
            = out: miss: no such key
            > discard main
            > vanish r2
            > solve out
            load out from r2
            load base from r1
            exec out
            = out: miss: record r2 is gone
            > discard main
            > vanish r1
            > vanish r3
            > solve out
            load out from r3
            load base from r1
            exec base
            exec out
            = out: miss: record r3 is gone
            > progress main
            base loaded
            out loaded
            base started
            base completed
            base started
            base completed
            out started
            out completed
            base loaded
            out loaded
            base started
            base completed
            out started
            out completed
            base started
            base completed cached
            out started
            out completed
            base loaded
            out loaded
            base started
            base completed
            out started
            out completed
            base started
            base completed
            base started
            base completed
            out started
            out completed
        "#]],
    );
}

#[test]
fn an_imported_result_becomes_ours() {
    check(
        DIAMOND,
        "solve out
         discard main
         import
         solve out
         discard main
         solve out",
        expect![[r#"
            > solve out
            exec base
            exec left
            exec right
            exec out
            = out: miss: no such key
            > discard main
            > import
            > solve out
            load out from elsewhere/r4
            = out: hit import elsewhere elsewhere/r4
            > discard main
            > solve out
            load out from elsewhere/r4
            = out: hit import elsewhere elsewhere/r4
        "#]],
    );
}

#[test]
fn what_comes_along_with_an_import_is_stored_too() {
    check(
        DIAMOND,
        "solve out
         discard main
         import generous
         solve out
         discard main
         forget
         solve left",
        expect![[r#"
            > solve out
            exec base
            exec left
            exec right
            exec out
            = out: miss: no such key
            > discard main
            > import generous
            > solve out
            load out from elsewhere/r4
            = out: hit import elsewhere elsewhere/r4
            > discard main
            > forget
            > solve left
            load left from r7
            = left: hit local r7
        "#]],
    );
}

#[test]
fn a_failure_names_the_vertex_and_is_remembered() {
    check(
        "base = run scratch 'make' fails
         out = run base 'out'",
        "solve out
         solve out as other
         progress other",
        expect![[r#"
            > solve out
            exec base
            = out: base failed: make failed
            > solve out as other
            = out of other: base failed: make failed
            > progress other
            base loaded
            base started
            base completed (make failed)
            out loaded
        "#]],
    );
}

#[test]
fn the_failure_of_a_leader_is_the_followers_own() {
    check(
        "out1 = run scratch 'make' fails
         out2 = run scratch 'make' fails",
        "ask out1 as one
         ask out2 as two
         end key out1
         end key out2
         run",
        expect![[r#"
            > ask out1 as one
            > ask out2 as two
            > end key out1
            exec out1
            > end key out2
            > run
            = out1 of one: out1 failed: make failed
            = out2 of two: out2 failed: make failed
        "#]],
    );
}

#[test]
fn every_miss_has_a_reason() {
    check(
        "one = run scratch 'one'
         two = run scratch 'two'
         a = run one 'step'
         b = run two 'step'
         c = run one two 'join'
         d = run two one 'join'
         e = run two two 'join'
         f = run one~ 'content'
         g = run two~ 'content'
         h = run one 'forced' ignore",
        "solve a
         solve b
         solve c
         solve d
         solve e
         solve f
         solve g
         solve h
         discard main
         evict r3
         solve a",
        expect![[r#"
            > solve a
            exec one
            exec a
            = a: miss: no such key
            > solve b
            exec two
            exec b
            = b: miss: input 0 changed
            > solve c
            exec c
            = c: miss: no such key
            > solve d
            exec d
            = d: miss: input 0 changed
            > solve e
            exec e
            = e: miss: inputs not seen together
            > solve f
            digest f input 0
            exec f
            = f: miss: no such key
            > solve g
            digest g input 0
            exec g
            = g: miss: content of input 0 changed
            > solve h
            exec h
            = h: miss: cache ignored by request
            > discard main
            > evict r3
            > solve a
            load a from r2
            = a: hit local r2
        "#]],
    );
}

#[test]
fn older_jobs_run_first_and_longer_ways_before_shorter_ones() {
    let graph = "
        first = run scratch 'first' weight=1
        short = run scratch 'short' weight=1
        start = run scratch 'start' weight=1
        end   = run start 'end' weight=1
        young = merge short end
        old   = run scratch 'old' weight=1";
    let script = "
        ask first as old
        ask young as young
        end key first
        end key short
        end key start
        end key end
        end key young
        ask old as old
        end key old
        end exec first
        run";
    expect![[r#"
        > ask first as old
        > ask young as young
        > end key first
        exec first
        > end key short
        > end key start
        > end key end
        > end key young
        > ask old as old
        > end key old
        > end exec first
        exec old
        = first of old: miss: no such key
        > run
        exec start
        exec short
        exec end
        exec young
        = young of young: miss: no such key
        = old of old: miss: no such key
    "#]]
    .assert_eq(&script::run_limited(1, graph, script));
}

#[test]
fn all_outputs_come_from_one_run() {
    check(
        "two = run scratch 'two' outputs=2
         out = merge two/0 two/1",
        "solve out
         discard main
         solve two/1",
        expect![[r#"
            > solve out
            exec two
            exec out
            = out: miss: no such key
            > discard main
            > solve two/1
            load two from r2
            = two/1: hit local r2
        "#]],
    );
}
