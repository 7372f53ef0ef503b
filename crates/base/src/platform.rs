//! Operating system, architecture and variant, with containerd's normal forms.
//! Source: LLB notes §1.4 and Dockerfile notes §10.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A platform as in OCI descriptors. [`Platform::normalize`]d unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// GOARCH name, e.g. `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// GOOS name, e.g. `linux`.
    #[serde(default)]
    pub os: String,
    /// Windows build and the like; mostly empty.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Mostly empty.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// E.g. `v7` for arm.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The text does not name a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: invalid argument")]
pub struct ParsePlatformError {
    /// What was given.
    pub text: String,
    /// Why it cannot be used; tells what was given.
    pub reason: String,
}

/// What follows the operating system in a platform's text.
const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";

const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "hurd",
    "illumos",
    "ios",
    "js",
    "linux",
    "nacl",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "windows",
    "zos",
];
const KNOWN_ARCH: &[&str] = &[
    "386",
    "amd64",
    "amd64p32",
    "arm",
    "armbe",
    "arm64",
    "arm64be",
    "ppc64",
    "ppc64le",
    "loong64",
    "mips",
    "mipsle",
    "mips64",
    "mips64le",
    "mips64p32",
    "mips64p32le",
    "ppc",
    "riscv",
    "riscv64",
    "s390",
    "s390x",
    "sparc",
    "sparc64",
    "wasm",
];

impl Platform {
    /// `os/architecture` without a variant.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self { os: os.into(), architecture: architecture.into(), ..Self::default() }
    }

    /// The platform this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), ..Self::default() }
            .normalize()
    }

    /// containerd's normal form: see [`normalize_os`] and [`normalize_arch`].
    pub fn normalize(&self) -> Self {
        let (architecture, variant) = normalize_arch(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            os: normalize_os(&self.os),
            architecture,
            variant,
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    /// Parses `os`, `arch`, `os/arch` or `os/arch/variant`, with `os(version+feature)` allowed.
    /// One part is completed from the host.
    pub fn parse(text: &str) -> Result<Self, ParsePlatformError> {
        let fail = |reason| Err(ParsePlatformError { text: text.to_owned(), reason });
        if text.contains('*') {
            return fail(format!("{text:?}: wildcards not yet supported"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let valid = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let (os, options) = match parts[0].split_once('(') {
            Some((os, rest)) => match rest.strip_suffix(')') {
                Some(options) => (os, options),
                None => return fail(bad_os(parts[0], text)),
            },
            None => (parts[0], ""),
        };
        let options_valid = |text: &str| {
            let mut parts = text.split('+');
            let letters = |part: &str| {
                part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.%-".contains(&b))
            };
            parts.next().is_none_or(letters) && parts.all(|part| !part.is_empty() && letters(part))
        };
        if !valid(os) || os.contains('.') || !options_valid(options) {
            return fail(bad_os(parts[0], text));
        }
        if let Some(part) = parts[1..].iter().find(|part| !valid(part)) {
            return fail(format!(
                "{part:?} is an invalid component of {text:?}: platform specifier component must \
                 match {COMPONENT:?}"
            ));
        }
        let mut platform = Self::default();
        if let Some((version, features)) = options.split_once('+') {
            platform.os_version = unescape(version);
            platform.os_features = features.split('+').map(unescape).collect();
        } else {
            platform.os_version = unescape(options);
        }
        match parts.len() {
            1 => {
                let as_os = normalize_os(os);
                if KNOWN_OS.contains(&as_os.as_str()) {
                    platform.os = as_os;
                    platform.architecture = Self::host().architecture;
                    platform.variant = Self::host().variant;
                    return Ok(platform);
                }
                let (architecture, variant) = normalize_arch(os, "");
                if KNOWN_ARCH.contains(&architecture.as_str()) && os == parts[0] {
                    platform.os = Self::host().os;
                    platform.variant = if architecture == "arm" && variant == "v7" {
                        String::new()
                    } else {
                        variant
                    };
                    platform.architecture = architecture;
                    return Ok(platform);
                }
                fail(format!("{text:?}: unknown operating system or architecture"))
            }
            2 => {
                platform.os = normalize_os(os);
                (platform.architecture, platform.variant) = normalize_arch(parts[1], "");
                if platform.architecture == "arm" && platform.variant == "v7" {
                    platform.variant.clear();
                }
                Ok(platform)
            }
            3 => {
                platform.os = normalize_os(os);
                (platform.architecture, platform.variant) = normalize_arch(parts[1], parts[2]);
                if platform.architecture == "arm64" && platform.variant.is_empty() {
                    platform.variant = "v8".into();
                }
                Ok(platform)
            }
            _ => fail(format!("{text:?}: cannot parse platform specifier")),
        }
    }

    /// `os/arch[/variant]`; `unknown` if there is no OS.
    pub fn format(&self) -> String {
        if self.os.is_empty() {
            return "unknown".into();
        }
        crate::path::join([self.os.as_str(), &self.architecture, &self.variant])
    }

    /// As [`Platform::format`], with `(version+features)` after the OS.
    pub fn format_all(&self) -> String {
        if self.os.is_empty() {
            return "unknown".into();
        }
        let mut os = self.os.clone();
        if !self.os_version.is_empty() || !self.os_features.is_empty() {
            os.push('(');
            os.push_str(&escape(&self.os_version));
            for feature in &self.os_features {
                os.push('+');
                os.push_str(&escape(feature));
            }
            os.push(')');
        }
        crate::path::join([os.as_str(), &self.architecture, &self.variant])
    }

    /// Whether an image for `self` runs where `wanted` is asked for exactly (both normalised).
    pub fn matches(&self, wanted: &Self) -> bool {
        let (have, want) = (self.normalize(), wanted.normalize());
        have.os == want.os
            && have.architecture == want.architecture
            && have.variant == want.variant
            && (want.os_version.is_empty()
                || have.os_version.is_empty()
                || have.os_version == want.os_version)
    }

    /// Position of `self` in the list of what a machine for `wanted` can run, best first: a higher
    /// variant of amd64 or arm also runs the lower ones, amd64 runs 386, arm64 runs arm.
    pub fn rank_for(&self, wanted: &Self) -> Option<usize> {
        let have = self.normalize();
        wanted.runnable().iter().position(|candidate| have.matches(candidate))
    }

    /// What a machine for `self` runs, best first.
    fn runnable(&self) -> Vec<Self> {
        let own = self.normalize();
        let with = |architecture: &str, variant: &str| Self {
            architecture: architecture.into(),
            variant: variant.into(),
            ..own.clone()
        };
        let mut list = vec![own.clone()];
        let level = own.variant.strip_prefix('v').and_then(|digits| digits.parse::<u32>().ok());
        match own.architecture.as_str() {
            "amd64" => {
                if let Some(level) = level {
                    list.extend((2..level).rev().map(|lower| with("amd64", &format!("v{lower}"))));
                    list.push(with("amd64", ""));
                }
                list.push(with("386", ""));
            }
            "arm" => {
                list.extend(
                    (5..level.unwrap_or(7)).rev().map(|lower| with("arm", &format!("v{lower}"))),
                );
            }
            "arm64" => {
                if let Some(level) = level.filter(|level| *level > 8) {
                    list.extend((9..level).rev().map(|lower| with("arm64", &format!("v{lower}"))));
                    list.push(with("arm64", ""));
                }
                list.extend((5..9).rev().map(|lower| with("arm", &format!("v{lower}"))));
            }
            _ => {}
        }
        list
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.format_all())
    }
}

/// Lower case; empty is the host's; `macos` is `darwin`.
pub fn normalize_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "" => "linux".into(),
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

/// Common names to GOARCH names and variants.
pub fn normalize_arch(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match architecture.as_str() {
        "i386" => ("386", ""),
        "x86_64" | "x86-64" | "amd64" => {
            ("amd64", if variant == "v1" { "" } else { variant.as_str() })
        }
        "aarch64" | "arm64" => match variant.as_str() {
            "8" | "v8" | "v8.0" => ("arm64", ""),
            "9" | "9.0" | "v9.0" => ("arm64", "v9"),
            other => ("arm64", other),
        },
        "armhf" => ("arm", "v7"),
        "armel" => ("arm", "v6"),
        "arm" => match variant.as_str() {
            "" | "7" => ("arm", "v7"),
            "5" => ("arm", "v5"),
            "6" => ("arm", "v6"),
            "8" => ("arm", "v8"),
            other => ("arm", other),
        },
        other => (other, variant.as_str()),
    };
    (architecture.to_owned(), variant.to_owned())
}

fn escape(text: &str) -> String {
    text.replace('%', "%25")
        .replace('+', "%2B")
        .replace('(', "%28")
        .replace(')', "%29")
        .replace('/', "%2F")
}

fn unescape(text: &str) -> String {
    text.replace("%2F", "/")
        .replace("%29", ")")
        .replace("%28", "(")
        .replace("%2B", "+")
        .replace("%25", "%")
}

fn bad_os(part: &str, text: &str) -> String {
    format!("{part:?} is an invalid OS component of {text:?}: write os or os(version+feature)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_formats() {
        for (text, formatted) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64/v1", "linux/amd64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm", "linux/arm"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("macOS/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ] {
            assert_eq!(Platform::parse(text).unwrap().format_all(), formatted);
        }
        assert_eq!(Platform::parse("linux/arm").unwrap().normalize().format(), "linux/arm/v7");
        for bad in ["", "linux/", "a/b/c/d", "linux/*", "nosuch"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ranks_what_a_machine_runs() {
        let rank = |have: &str, want: &str| {
            Platform::parse(have).unwrap().rank_for(&Platform::parse(want).unwrap())
        };
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/386", "linux/amd64"), Some(1));
        assert_eq!(rank("linux/amd64/v2", "linux/amd64"), None);
        assert!(rank("linux/arm/v6", "linux/arm64") > rank("linux/arm/v7", "linux/arm64"));
    }
}
