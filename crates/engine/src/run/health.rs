//! Health checks: a command that is run in a container again and again while it runs.
//!
//! A container with checks is *starting* until one succeeds (*healthy*) or enough fail in a row
//! (*unhealthy*); failures of the start period do not count. Nothing else follows from it: people
//! and scripts look at it.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use executor::Event;
use oci::{ImageConfig, config::Healthcheck};
use proto::rbuild::v1 as wire;
use tokio::time::timeout;

use super::{Container, KILL, Runner};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Checks that are remembered, and bytes of the output of each.
const REMEMBERED: usize = 5;
const MAX_OUTPUT: usize = 4096;

/// What is run, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Check {
    args: Vec<String>,
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Check {
    /// The image's check with what was asked for over it; `None` if there is none.
    pub(super) fn of(asked: Option<&wire::Healthcheck>, image: &ImageConfig) -> Option<Self> {
        let none = Healthcheck::default();
        let own = image.config.healthcheck.as_ref().unwrap_or(&none);
        let nothing = wire::Healthcheck::default();
        let asked = asked.unwrap_or(&nothing);
        let test = if asked.test.is_empty() { &own.test } else { &asked.test };
        let args = match test.split_first() {
            Some((kind, args)) if kind == "CMD" => args.to_vec(),
            Some((kind, [line])) if kind == "CMD-SHELL" => {
                let usual = ["/bin/sh".to_owned(), "-c".to_owned()];
                let shell = Some(&image.config.shell[..]).filter(|shell| !shell.is_empty());
                [shell.unwrap_or(&usual), std::slice::from_ref(line)].concat()
            }
            _ => return None,
        };
        let time = |asked: i64, own: i64, usual: Duration| {
            let given = [asked, own].into_iter().find(|nanos| *nanos > 0);
            given.map_or(usual, |nanos| Duration::from_nanos(nanos.unsigned_abs()))
        };
        let retries = [asked.retries, u32::try_from(own.retries).unwrap_or(0)];
        (!args.is_empty()).then(|| Self {
            args,
            interval: time(asked.interval, own.interval, INTERVAL),
            timeout: time(asked.timeout, own.timeout, TIMEOUT),
            start_period: time(asked.start_period, own.start_period, Duration::ZERO),
            start_interval: time(asked.start_interval, own.start_interval, START_INTERVAL),
            retries: retries.into_iter().find(|retries| *retries > 0).unwrap_or(RETRIES),
        })
    }
}

/// How a container is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Starting,
    Healthy,
    Unhealthy,
}

/// What the checks of one run found.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    state: State,
    failing: u32,
    log: VecDeque<wire::HealthResult>,
}

impl Health {
    /// Notes a check; one that `counts` may make the container unhealthy.
    fn note(&mut self, result: wire::HealthResult, counts: bool, retries: u32) {
        if result.code == 0 {
            self.failing = 0;
            self.state = State::Healthy;
        } else if counts || self.state != State::Starting {
            self.failing += 1;
            if self.failing >= retries {
                self.state = State::Unhealthy;
            }
        }
        self.log.push_back(result);
        while self.log.len() > REMEMBERED {
            self.log.pop_front();
        }
    }

    pub(super) fn to_wire(&self) -> wire::Health {
        let status = match self.state {
            State::Starting => "starting",
            State::Healthy => "healthy",
            State::Unhealthy => "unhealthy",
        };
        wire::Health {
            status: status.into(),
            failing: self.failing,
            log: self.log.iter().cloned().collect(),
        }
    }
}

/// Checks a container until it ends.
pub(super) async fn watch(runner: Arc<Runner>, container: Arc<Container>, check: Check) {
    let begin = Instant::now();
    container.set_health(Health::default());
    loop {
        let starting = begin.elapsed() < check.start_period
            && container.health().is_some_and(|health| health.state == State::Starting);
        let pause = if starting { check.start_interval } else { check.interval };
        if container.ends_within(pause).await {
            return;
        }
        let start = SystemTime::now();
        let (code, output) = probe(&runner, &container, &check).await;
        let counts = begin.elapsed() >= check.start_period;
        if !container.is_running() {
            return;
        }
        let result = wire::HealthResult {
            start: Some(start.into()),
            end: Some(SystemTime::now().into()),
            code,
            output,
        };
        let mut health = container.health().unwrap_or_default();
        health.note(result, counts, check.retries);
        container.set_health(health);
    }
}

/// Runs the check once: its exit status, -1 if it took too long or did not start, and its output.
async fn probe(runner: &Runner, container: &Arc<Container>, check: &Check) -> (i32, String) {
    let start = wire::ExecStart { args: check.args.clone(), ..Default::default() };
    let mut exec = match runner.exec(container, start).await {
        Ok(exec) => exec,
        Err(failure) => return (-1, failure.error.message),
    };
    let mut text = Vec::new();
    let running = async {
        while let Some((_, data)) = exec.output.recv().await {
            let room = MAX_OUTPUT.saturating_sub(text.len());
            text.extend_from_slice(&data[..data.len().min(room)]);
        }
        (&mut exec.exit).await
    };
    match timeout(check.timeout, running).await {
        Ok(exit) => {
            let code = exit.map_or(-1, |exit| exit.code);
            (code, String::from_utf8_lossy(&text).into_owned())
        }
        Err(_) => {
            _ = exec.events.send(Event::Signal(KILL)).await;
            (-1, format!("Health check exceeded timeout ({:?})", check.timeout))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_over_what_the_image_says() {
        let mut image = ImageConfig::default();
        assert_eq!(Check::of(None, &image), None);
        image.config.healthcheck = Some(Healthcheck {
            test: vec!["CMD-SHELL".into(), "test -e /ok".into()],
            interval: 2_000_000_000,
            ..Healthcheck::default()
        });
        let check = Check::of(None, &image).unwrap();
        assert_eq!(check.args, ["/bin/sh", "-c", "test -e /ok"]);
        assert_eq!((check.interval, check.timeout, check.retries), (INTERVAL / 15, TIMEOUT, 3));
        let asked = wire::Healthcheck { retries: 1, ..Default::default() };
        assert_eq!(Check::of(Some(&asked), &image).unwrap().retries, 1);
        let off = wire::Healthcheck { test: vec!["NONE".into()], ..Default::default() };
        assert_eq!(Check::of(Some(&off), &image), None);
    }

    #[test]
    fn health_follows_the_checks() {
        let mut health = Health::default();
        let mut after = |code, counts| {
            health.note(wire::HealthResult { code, ..Default::default() }, counts, 2);
            format!("{} {}", health.to_wire().status, health.failing)
        };
        assert_eq!(after(1, false), "starting 0");
        assert_eq!(after(1, true), "starting 1");
        assert_eq!(after(0, true), "healthy 0");
        assert_eq!(after(1, false), "healthy 1");
        assert_eq!(after(1, true), "unhealthy 2");
        assert_eq!(after(0, true), "healthy 0");
        assert_eq!(health.log.len(), REMEMBERED);
    }
}
