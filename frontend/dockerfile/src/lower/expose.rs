//! EXPOSE: `[[ip:]host:]port[-end][/protocol]`, of which only the container's side counts.
//!
//! Source: Dockerfile notes §11.5.

use std::net::IpAddr;

use super::Lowering;
use super::dispatch::Place;
use crate::error::{Error, Kind, Result};
use crate::image::Empty;
use crate::lint::Rule;
use crate::text;

impl Lowering<'_> {
    pub(super) fn expose(&mut self, place: &Place, items: &[String]) -> Result<()> {
        let mut words = Vec::new();
        for item in items {
            // One item may become several, or none.
            words.extend(self.lexer.words(item, &self.stages[place.stage].state.env)?);
        }
        let mut ports = Vec::new();
        for word in words {
            self.port(place, &word, &mut ports)?;
        }
        let text = format!("EXPOSE [{}]", ports.join(" "));
        self.count(text.len())?;
        let epoch = self.epoch;
        let stage = &mut self.stages[place.stage];
        stage.image.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
        stage.commit(text, false, epoch);
        Ok(())
    }

    fn port(&mut self, place: &Place, item: &str, ports: &mut Vec<String>) -> Result<()> {
        let invalid = || Error::new(Kind::ExposeInvalidPort, [text::quote(item)]);
        let mut parts = item.rsplitn(3, ':');
        let container = parts.next().unwrap_or_default();
        let host = parts.next().unwrap_or_default();
        let ip = parts.next().unwrap_or_default();
        let (container, protocol) = container.split_once('/').unwrap_or((container, ""));
        let lower = text::lower(protocol);
        let protocol_known = matches!(lower.as_str(), "" | "tcp" | "udp" | "sctp");
        if container.is_empty() || !protocol_known {
            return Err(invalid());
        }
        if protocol != lower {
            let message =
                format!("Defined protocol '{item}' in EXPOSE instruction should be lowercase");
            self.linter.report(&place.scope, Rule::ExposeProtoCasing, place.lines, message);
        }
        if !ip.is_empty() || !host.is_empty() {
            let message = format!(
                "EXPOSE instruction should not define an IP address or host-port mapping, found '{item}'"
            );
            self.linter.report(&place.scope, Rule::ExposeInvalidFormat, place.lines, message);
        }
        if !ip.is_empty() && !is_ip(ip) {
            return Err(Error::new(Kind::ExposeInvalidIp, [ip]));
        }
        let bad = || Error::new(Kind::ExposeInvalidContainerPort, [container]);
        let (first, last) = range(container).ok_or_else(bad)?;
        if !host.is_empty() {
            let bad = || Error::new(Kind::ExposeInvalidHostPort, [host]);
            let (host_first, host_last) = range(host).ok_or_else(bad)?;
            if last - first != host_last - host_first && first != last {
                return Err(Error::new(Kind::ExposeRangeMismatch, [container, host]));
            }
        }
        let protocol = if lower.is_empty() { "tcp" } else { &lower };
        ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
        Ok(())
    }
}

fn is_ip(text: &str) -> bool {
    let inner = match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').unwrap_or("no address"),
        None => text,
    };
    inner.parse::<IpAddr>().is_ok()
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.strip_prefix('+').unwrap_or(text).parse::<u16>().ok();
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
        None => number(text).map(|port| (port, port)),
    }
}
