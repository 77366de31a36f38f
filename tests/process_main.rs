//! Whole programs: what their `main` does and does not see, how they end, what is on their streams.
//!
//! This one has no harness, so that each scenario can be a `main` of its own: the program runs
//! itself once for each, told which by a variable, and looks at what comes of it.

#![cfg_attr(not(target_os = "linux"), allow(unused))]
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod support;

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io::Write;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, ExitCode, Output, Stdio};
    use std::time::Duration;

    use tokio_multiprocess as mp;

    use crate::support::process::{
        Call, Meeting, clean_methods, eventually, forever, methods, runs, runtime,
    };
    use crate::support::scenario::{self, SCENARIO, Scenario};

    const SCENARIOS: &[Scenario] = &[
        Scenario { name: "reports_are_complete", run: reports, check: reports_are_complete },
        Scenario { name: "reasons_are_printed", run: reasons, check: reasons_are_printed },
        Scenario { name: "what_is_printed_is_printed_once", run: prints, check: prints_are_whole },
        Scenario { name: "a_start_before_freeze_support_is_an_error", run: bomb, check: no_bomb },
        Scenario { name: "freeze_support_in_time_is_enough", run: frozen, check: says_ok },
        Scenario { name: "children_of_a_main_that_returns", run: returns, check: returned },
        Scenario { name: "finalizers", run: finalizers, check: finalizers_ran },
        Scenario { name: "streams_that_are_closed", run: streams, check: streams_closed },
        Scenario { name: "children_that_close_their_streams", run: closing_children, check: says_ok },
        Scenario { name: "ignored_children", run: ignored, check: says_ok },
        Scenario { name: "children_reaped_by_somebody_else", run: stolen, check: says_ok },
        Scenario { name: "orphans", run: orphans, check: says_ok },
        Scenario { name: "a_fork_without_foreign_threads", run: lone_fork, check: says_ok },
    ];

    pub(crate) fn main() {
        scenario::main(SCENARIOS, Stdio::null);
    }

    fn run(program: &mut Command) -> Output {
        program.output().unwrap()
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    fn says_ok(program: &mut Command) {
        let output = run(program);
        assert_eq!((text(&output.stderr), text(&output.stdout)), ("", "ok\n"));
        assert_eq!(output.status.code(), Some(0));
    }

    async fn code(builder: mp::ProcessBuilder) -> i32 {
        builder.start().await.unwrap().join().await.unwrap().exit_code()
    }

    fn panics() {
        print!("not a whole line");
        panic!("the report of a panic");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::fmt::Error);

    fn fails() -> Result<(), mp::Failure> {
        Err(Outer(std::fmt::Error))?
    }

    fn overflows() {
        fn deeper(depth: u64) -> u64 {
            let frame = std::hint::black_box([depth; 64]);
            if depth == u64::MAX {
                0
            } else {
                deeper(std::hint::black_box(depth + 1)) + std::hint::black_box(frame)[0]
            }
        }
        deeper(0);
    }

    /// A message that cannot be read.
    #[derive(serde::Serialize)]
    struct Unreadable;

    impl<'de> serde::Deserialize<'de> for Unreadable {
        fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            Err(serde::de::Error::custom("not tomorrow"))
        }
    }

    fn reports() {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).unwrap();
        runtime().block_on(async {
            for ctx in methods() {
                assert_eq!(code(ctx.process(panics, ()).name("panics")).await, 1);
                eprintln!("--");
                assert_eq!(code(ctx.process(fails, ())).await, 1);
                eprintln!("--");
                assert_eq!(code(ctx.process(|_: Unreadable| (), (Unreadable,)).name("reader")).await, 1);
                eprintln!("--");
                assert_eq!(code(ctx.process(overflows, ())).await, -11);
                eprintln!("==");
            }
        });
    }

    // conformance: _TestSubclassingProcess.test_stderr_flush
    fn reports_are_complete(program: &mut Command) {
        let output = run(program);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(text(&output.stdout), "not a whole line".repeat(3));
        let rounds: Vec<&str> = stderr.split("==\n").collect();
        assert_eq!((rounds.len(), rounds[3]), (4, ""), "{stderr}");
        for round in &rounds[..3] {
            let reports: Vec<&str> = round.split("--\n").collect();
            assert!(reports[0].contains("the report of a panic"), "{round}");
            assert!(reports[0].contains("tests/process_main.rs:"), "{round}");
            assert_eq!(
                reports[1],
                "Error: outer\n  caused by: an error occurred when formatting an argument\n"
            );
            assert!(reports[2].starts_with("reader: the arguments of "), "{round}");
            assert!(reports[2].ends_with("cannot be decoded: not tomorrow\n"), "{round}");
            assert!(reports[3].contains("a thread has overflowed its stack"), "{round}");
        }
    }

    fn reasons() {
        runtime().block_on(async {
            for ctx in methods() {
                assert_eq!(code(ctx.process(|| -> () { mp::exit("a text") }, ())).await, 1);
                assert_eq!(
                    code(ctx.process(|| -> () { mp::exit(Some("some text".to_owned())) }, ())).await,
                    1
                );
                assert_eq!(code(ctx.process(|| -> () { mp::exit(8) }, ())).await, 8);
            }
        });
        mp::exit("and the parent's");
    }

    fn reasons_are_printed(program: &mut Command) {
        let output = run(program);
        let expected = "a text\nsome text\n".repeat(3) + "and the parent's\n";
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("", expected.as_str()));
        assert_eq!(output.status.code(), Some(1));
    }

    fn prints() {
        fn child(name: String) {
            println!("the child's line by {name}");
            println!("and half a line");
        }
        runtime().block_on(async {
            for ctx in methods() {
                print!("buffered. ");
                assert_eq!(code(ctx.process(child, (ctx.start_method().to_string(),))).await, 0);
            }
        });
    }

    fn prints_are_whole(program: &mut Command) {
        let output = run(program);
        let text = text(&output.stdout);
        for method in ["spawn", "forkserver", "fork"] {
            assert_eq!(text.matches(&format!("the child's line by {method}\n")).count(), 1, "{text}");
        }
        assert_eq!(text.matches("buffered. ").count(), 3, "{text}");
        assert_eq!(text.matches("and half a line\n").count(), 3, "{text}");
    }

    fn bomb() {
        mp::require_freeze_support();
        runtime().block_on(async {
            let children = clean_methods().into_iter().map(|ctx| ctx.process(|| print!("123"), ()).start());
            let mut failed = false;
            for start in children {
                if let Err(error) = start.await {
                    eprintln!("{error}");
                    failed = true;
                }
            }
            // What a child does here, a main process can do as well.
            mp::exit(if failed { 7 } else { 0 });
        });
    }

    // conformance: TestNoForkBomb.test_noforkbomb
    fn no_bomb(program: &mut Command) {
        let output = run(program);
        let stderr = text(&output.stderr);
        assert_eq!(text(&output.stdout), "");
        assert_eq!(output.status.code(), Some(7), "{stderr}");
        // Two children tried to start two each; then they ended, which is their starts' error here.
        assert_eq!(stderr.matches("this process is itself still starting").count(), 4, "{stderr}");
        assert_eq!(
            stderr.matches("the child ended before its target ran (exit code 7)").count(),
            2,
            "{stderr}"
        );
    }

    fn frozen() {
        mp::require_freeze_support();
        mp::freeze_support();
        runtime().block_on(async {
            for ctx in methods() {
                let value = ctx.spawn(|x: u8| x + 1, (41,)).await.unwrap().await.unwrap();
                assert_eq!(value, 42);
            }
        });
        println!("ok");
    }

    fn returns() {
        fn lasting(parent: i32) {
            // Longer than `main`: it ends when the parent waits for it and does nothing else.
            let stat = || crate::support::process::Stat::of(parent).unwrap().state;
            eventually("the parent waits", || stat() == 'S');
            println!("it was waited for");
        }
        runtime().block_on(async {
            for ctx in methods() {
                drop(ctx.process(lasting, (std::process::id() as i32,)).start().await.unwrap());
                let daemon = ctx.process(forever, ()).daemon(true).start().await.unwrap();
                println!("daemon {}", daemon.pid());
            }
        });
    }

    fn returned(program: &mut Command) {
        let output = run(program);
        let text = text(&output.stdout);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text.matches("it was waited for\n").count(), 3, "{output:?}");
        let daemons: Vec<i32> =
            text.lines().filter_map(|line| line.strip_prefix("daemon ")?.parse().ok()).collect();
        assert_eq!(daemons.len(), 3);
        let left: Vec<_> = daemons.iter().map(|pid| runs(*pid)).collect();
        assert_eq!(left, [false; 3], "{text}");
    }

    fn finalizers() {
        fn note(text: &'static str) -> impl FnOnce() {
            move || println!("{} {text}", mp::current_process().name())
        }
        fn child() {
            mp::util::Finalize::new(0, note("own"));
        }
        mp::current_process().set_name("parent");
        let called = mp::util::Finalize::new(100, note("by hand"));
        assert!(called.call() && !called.call() && !called.still_active());
        assert!(mp::util::Finalize::new(100, note("never")).cancel());
        mp::util::Finalize::new(0, note("e"));
        // Also what needs thread-locals.
        mp::util::Finalize::new(-1, || {
            mp::block_on(async { tokio::spawn(async { note("f")() }).await }).unwrap().unwrap()
        });
        mp::util::Finalize::new(10, || panic!("one action only"));
        for text in ["d01", "d02", "d03"] {
            mp::util::Finalize::new(1, note(text));
        }
        mp::util::Finalize::new(10, || {
            mp::util::Finalize::new(5, note("registered by another"));
        });
        mp::util::Finalize::new(10, note("d10"));
        std::panic::set_hook(Box::new(|_| {}));
        runtime().block_on(async {
            for ctx in methods() {
                assert_eq!(code(ctx.process(child, ()).name("child")).await, 0);
                assert_eq!(
                    code(
                        ctx.process(
                            || {
                                child();
                                mp::exit(3)
                            },
                            ()
                        )
                        .name("child")
                    )
                    .await,
                    3
                );
            }
        });
    }

    // conformance: _TestFinalize.test_finalize
    fn finalizers_ran(program: &mut Command) {
        let output = run(program);
        let children = "child own\n".repeat(6);
        let parent = ["by hand", "d10", "registered by another", "d03", "d02", "d01", "e", "f"];
        let mut lines: Vec<String> = parent.iter().map(|text| format!("parent {text}\n")).collect();
        lines.insert(1, children);
        assert_eq!(text(&output.stdout), lines.concat());
        assert_eq!(output.status.code(), Some(0));
    }

    fn streams() {
        let mut codes = Vec::new();
        runtime().block_on(async {
            for ctx in methods() {
                let target = || {
                    let _ = writeln!(std::io::stdout(), "out");
                    let _ = writeln!(std::io::stderr(), "err");
                };
                codes.push(code(ctx.process(target, ())).await);
                let value = ctx.spawn(|x: u8| x, (5,)).await.unwrap().await.unwrap();
                codes.push(i32::from(value));
            }
        });
        mp::exit(i32::from(codes != [0, 5, 0, 5, 0, 5]));
    }

    fn streams_closed(program: &mut Command) {
        for closed in [&[1][..], &[2], &[1, 2], &[0, 1, 2]] {
            let mut program = Command::new(program.get_program());
            program.env(SCENARIO, "streams_that_are_closed").stdin(Stdio::null());
            program.stdout(Stdio::null()).stderr(Stdio::null());
            // SAFETY: closing descriptors is all that is done between fork and exec.
            unsafe {
                program.pre_exec(move || {
                    closed.iter().for_each(|fd| {
                        libc::close(*fd);
                    });
                    Ok(())
                })
            };
            assert_eq!(program.status().unwrap().code(), Some(0), "{closed:?}");
        }
    }

    // conformance: _TestProcess.test_error_on_stdio_flush_2
    fn closing_children() {
        fn target(closed: Vec<i32>) {
            print!("lost");
            // SAFETY: Rust's streams put up with it, and nobody else uses them here.
            closed.iter().for_each(|fd| assert_eq!(unsafe { libc::close(*fd) }, 0));
        }
        runtime().block_on(async {
            for ctx in methods() {
                for closed in [vec![1], vec![1, 2]] {
                    assert_eq!(code(ctx.process(target, (closed.clone(),))).await, 0, "{ctx:?} {closed:?}");
                }
            }
        });
        println!("ok");
    }

    /// How children end here, of whom the kernel tells nothing; how many deaths had no words.
    async fn last_words() -> usize {
        let mut unknown = 0;
        for ctx in methods() {
            assert_eq!(code(ctx.process(|| ExitCode::from(5), ())).await, 5, "{ctx:?}");
            assert_eq!(code(ctx.process(|| -> () { mp::exit(6) }, ())).await, 6, "{ctx:?}");
            assert_eq!(ctx.spawn(|x: u8| x, (7,)).await.unwrap().await.unwrap(), 7);
            let child = ctx.process(forever, ()).start().await.unwrap();
            child.kill().unwrap();
            let status = child.join().await.unwrap();
            if status.signal() != Some(9) {
                assert!(status.is_unknown(), "{status}");
                assert_eq!((status.exit_code(), status.success()), (255, false));
                assert_eq!(status.to_string(), "exited, status unknown");
                unknown += 1;
            }
        }
        assert!(mp::active_children().is_empty());
        unknown
    }

    fn ignored() {
        // SAFETY: ignoring runs no code.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        assert_eq!(runtime().block_on(last_words()), 3);
        println!("ok");
    }

    fn stolen() {
        std::thread::spawn(|| {
            loop {
                // SAFETY: null declines the status.
                if unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } < 0 {
                    std::thread::yield_now();
                }
            }
        });
        // Now and then the crate is faster than the thief.
        while runtime().block_on(last_words()) == 0 {}
        println!("ok");
    }

    /// Has a daemon, which has a program of its own, and tells their ids; then it waits to be killed.
    async fn middle(address: String) {
        #[allow(clippy::zombie_processes, reason = "it ends with this process")]
        fn daemon(address: String) {
            let program = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            let mut call = Call::to(&address);
            call.say(std::process::id());
            call.say(program.id());
            forever();
        }
        let _daemon = mp::Process::builder(daemon, (address,)).daemon(true).start().await.unwrap();
        std::future::pending::<()>().await;
    }

    fn orphans() {
        runtime().block_on(async {
            let meeting = Meeting::new();
            for ctx in methods() {
                let child = ctx.process(middle, (meeting.address(),)).start().await.unwrap();
                let mut caller = meeting.accept().await;
                let mut pids = Vec::new();
                for _ in 0..2 {
                    pids.push(caller.hear().await.unwrap().parse::<i32>().unwrap());
                }
                // A stopped one is no exception.
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pids[0]),
                    nix::sys::signal::Signal::SIGSTOP,
                )
                .unwrap();
                assert!(pids.iter().all(|pid| runs(*pid)));
                child.kill().unwrap();
                child.join().await.unwrap();
                eventually("they die with it", || !pids.iter().any(|pid| runs(*pid)));
            }
        });
        println!("ok");
    }

    fn lone_fork() {
        runtime().block_on(async {
            let fork = mp::Context::new(mp::StartMethod::Fork);
            // Nobody has to vouch: there is no thread but this crate's, and it has some.
            let spawned =
                mp::Process::without_target().context(clean_methods().remove(0)).start().await.unwrap();
            drop(spawned);
            for number in 0..20u8 {
                assert_eq!(
                    code(fork.process(|number: u8| ExitCode::from(number), (number,))).await,
                    i32::from(number)
                );
            }
            let child = fork
                .process(|| -> () { std::thread::park_timeout(Duration::MAX) }, ())
                .start()
                .await
                .unwrap();
            child.terminate().unwrap();
            assert_eq!(child.join().await.unwrap().signal(), Some(15));
        });
        println!("ok");
    }
}
