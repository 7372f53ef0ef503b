//! The environment of a build step, put together in the order that clients rely on.

/// `PATH` of processes that bring none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The same of a Windows process.
const WINDOWS_PATH: &str =
    r"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0";

/// Proxy settings of a build. Empty means unset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxy {
    /// `HTTP_PROXY`.
    pub http: String,
    /// `HTTPS_PROXY`.
    pub https: String,
    /// `FTP_PROXY`.
    pub ftp: String,
    /// `NO_PROXY`.
    pub no: String,
    /// `ALL_PROXY`.
    pub all: String,
}

/// The final environment of a process of the operating system `os`: `env`, proxy variables in upper then lower case, the default `PATH`
/// when none is given, secret variables, and those of `if_missing` whose name is not yet taken.
pub fn finalise(
    os: &str,
    env: &[String],
    proxy: Option<&Proxy>,
    secrets: impl IntoIterator<Item = (String, String)>,
    if_missing: &[String],
) -> Vec<String> {
    let mut result = env.to_vec();
    if let Some(proxy) = proxy {
        for (name, value) in [
            ("HTTP_PROXY", &proxy.http),
            ("HTTPS_PROXY", &proxy.https),
            ("FTP_PROXY", &proxy.ftp),
            ("NO_PROXY", &proxy.no),
            ("ALL_PROXY", &proxy.all),
        ] {
            if !value.is_empty() {
                result.push(format!("{name}={value}"));
                result.push(format!("{}={value}", name.to_lowercase()));
            }
        }
    }
    with_default_path(os, &mut result);
    result.extend(secrets.into_iter().map(|(name, value)| format!("{name}={value}")));
    for line in if_missing {
        if get(&result, name(line)).is_none() {
            result.push(line.clone());
        }
    }
    result
}

/// Adds the default `PATH` of an operating system when there is none.
pub fn with_default_path(os: &str, env: &mut Vec<String>) {
    if get(env, "PATH").is_none() {
        let path = if os == "windows" { WINDOWS_PATH } else { DEFAULT_PATH };
        env.push(format!("PATH={path}"));
    }
}

/// The value of a variable: that of its last line.
pub fn get<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    env.iter().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// One line for each name, in order of first appearance, with the value given last.
pub fn unique(env: &[String]) -> Vec<String> {
    let mut places = std::collections::HashMap::new();
    let mut result: Vec<String> = Vec::with_capacity(env.len());
    for line in env {
        match places.entry(name(line)) {
            std::collections::hash_map::Entry::Occupied(place) => {
                result[*place.get()] = line.clone();
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(result.len());
                result.push(line.clone());
            }
        }
    }
    result
}

fn name(line: &str) -> &str {
    line.split_once('=').map_or(line, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn order_is_kept() {
        let proxy = Proxy { http: "h".into(), no: "n".into(), ..Proxy::default() };
        let secrets = [("S".to_owned(), "s".to_owned())];
        assert_eq!(
            finalise("linux", &lines("A=1"), Some(&proxy), secrets, &lines("A=9 T=t")).join(" "),
            format!(
                "A=1 HTTP_PROXY=h http_proxy=h NO_PROXY=n no_proxy=n PATH={DEFAULT_PATH} S=s T=t"
            )
        );
    }

    #[test]
    fn a_given_path_stays() {
        let given = lines("PATH= B=2");
        assert_eq!(finalise("linux", &given, None, [], &[]), given);
        assert_eq!(finalise("windows", &given, None, [], &[]), given);
    }

    #[test]
    fn each_system_has_its_path() {
        let path = |os| finalise(os, &[], None, [], &[]).join(" ");
        assert_eq!(path("linux"), format!("PATH={DEFAULT_PATH}"));
        assert_eq!(path("windows"), format!("PATH={WINDOWS_PATH}"));
    }

    #[test]
    fn last_value_at_first_place() {
        assert_eq!(unique(&lines("A=1 B=2 A=3")), lines("A=3 B=2"));
    }
}
