//! Test programs without a harness, each scenario of which is a `main` of its own: the program runs itself
//! once for each, told which by a variable, and looks at what comes of it.

use std::process::{Command, Stdio};

use super::watchdog;

/// The variable.
pub(crate) const SCENARIO: &str = "TEST_SCENARIO";

/// What a program does, and what must come of it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) run: fn(),
    pub(crate) check: fn(&mut Command),
}

/// The `main` of such a program; `stdin` is what its scenarios have for that.
pub(crate) fn main(scenarios: &[Scenario], stdin: fn() -> Stdio) {
    if let Ok(name) = std::env::var(SCENARIO) {
        let scenario = scenarios.iter().find(|scenario| scenario.name == name).unwrap();
        return (scenario.run)();
    }
    // As far as test runners ask: a list, a filter.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    for Scenario { name, check, .. } in scenarios {
        let fits = |filter: &&String| {
            if has("--exact") { *filter == name } else { name.contains(filter.as_str()) }
        };
        if has("--ignored") || !filters.is_empty() && !filters.iter().any(fits) {
            continue;
        }
        if has("--list") {
            println!("{name}: test");
            continue;
        }
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.env(SCENARIO, name).env("RUST_BACKTRACE", "0");
        program.stdin(stdin()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let _watchdog = watchdog(120);
        check(&mut program);
        println!("test {name} ... ok");
    }
}
