//! What can be wrong with a Dockerfile or with the options of a build.
//!
//! An [`Error`] has a [`Kind`], the values its message mentions, perhaps the word that was meant,
//! and the lines it is about. The kinds are one table, each with its message.

use std::fmt;

use frontend_api::FrontendError;

/// First and last line, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lines {
    /// First line.
    pub first: u32,
    /// Last line.
    pub last: u32,
}

impl Lines {
    /// A single line.
    pub fn one(line: u32) -> Self {
        Self { first: line, last: line }
    }

    /// A place in the file without lines, as images have that only a mount names.
    pub const NOWHERE: Self = Self { first: u32::MAX, last: 0 };

    /// One wire range a line.
    pub fn to_ranges(self) -> Vec<llb::pb::Range> {
        if self == Self::NOWHERE {
            return Vec::new();
        }
        let at = |line: u32| Some(llb::pb::Position { line: line as i32, character: 0 });
        (self.first..=self.last.max(self.first))
            .map(|line| llb::pb::Range { start: at(line), end: at(line) })
            .collect()
    }
}

/// A reason why a build cannot go on.
#[derive(Debug, Clone)]
pub struct Error {
    /// Which rule was broken.
    pub kind: Kind,
    /// Values the message mentions.
    pub params: Vec<String>,
    /// Further values that only people need.
    pub notes: Vec<String>,
    /// The word that was probably meant.
    pub suggestion: Option<String>,
    /// Lines it is about; every layer that knows lines may add some.
    pub locations: Vec<Lines>,
    /// Words put before the message by outer layers, outermost first.
    pub context: Vec<String>,
    /// What the other side of the bridge said, if it was asked.
    pub cause: Option<Box<FrontendError>>,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `kind` whose message mentions `params`.
    pub fn new<P: Into<String>>(kind: Kind, params: impl IntoIterator<Item = P>) -> Self {
        Self {
            kind,
            params: params.into_iter().map(Into::into).collect(),
            notes: Vec::new(),
            suggestion: None,
            locations: Vec::new(),
            context: Vec::new(),
            cause: None,
        }
    }

    /// An error without parameters.
    pub fn plain(kind: Kind) -> Self {
        Self::new(kind, [""; 0])
    }

    /// An error without parameters whose message mentions `note`.
    pub fn noted(kind: Kind, note: impl Into<String>) -> Self {
        Self { notes: vec![note.into()], ..Self::plain(kind) }
    }

    /// What the bridge answered.
    pub fn bridge(cause: FrontendError) -> Self {
        Self { cause: Some(Box::new(cause)), ..Self::plain(Kind::Bridge) }
    }

    /// Adds lines.
    pub fn at(mut self, lines: Lines) -> Self {
        self.locations.push(lines);
        self
    }

    /// Sets the lines, dropping those known.
    pub fn only_at(mut self, lines: Lines) -> Self {
        self.locations = vec![lines];
        self
    }

    /// Puts `words: ` before the message.
    pub fn context(mut self, words: impl Into<String>) -> Self {
        self.context.insert(0, words.into());
        self
    }

    /// Suggests the nearest of `options` to `given`, unless something is suggested already.
    pub fn suggest<'a>(
        mut self,
        given: &str,
        options: impl IntoIterator<Item = &'a str>,
        case: Case,
    ) -> Self {
        if self.suggestion.is_none() {
            self.suggestion = crate::suggest::nearest(given, options, case);
        }
        self
    }
}

pub use crate::suggest::Case;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for words in &self.context {
            write!(f, "{words}: ")?;
        }
        match &self.cause {
            Some(cause) => write!(f, "{cause}")?,
            None => self.kind.write(&[self.params.as_slice(), &self.notes].concat(), f)?,
        }
        if let Some(word) = &self.suggestion {
            write!(f, " (did you mean {word}?)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

macro_rules! kinds {
    ($($variant:ident $name:literal $message:literal,)*) => {
        /// Rules that can be broken. The documentation of each is its message, in which `{0}` and
        /// so on stand for [`Error::params`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $(#[doc = $message] $variant,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The kind's short name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            fn template(self) -> &'static str {
                match self { $(Self::$variant => $message,)* }
            }
        }
    };
}

impl Kind {
    fn write(self, params: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.template();
        while let Some(at) = rest.find('{') {
            f.write_str(&rest[..at])?;
            let number = usize::from(rest.as_bytes()[at + 1] - b'0');
            f.write_str(params.get(number).map_or("", String::as_str))?;
            rest = &rest[at + 3..];
        }
        f.write_str(rest)
    }
}

kinds! {
    Bridge "bridge" "the build daemon could not answer",
    // Files as a whole.
    EmptyDockerfile "empty-dockerfile" "the Dockerfile cannot be empty",
    NoInstructions "no-instructions" "file with no instructions",
    NoStages "no-stages" "dockerfile contains no stages to build: add a FROM instruction",
    LineTooLong "line-too-long" "a line is longer than {0} bytes",
    TooLarge "too-large" "the build described is larger than {0} bytes",
    // Parser directives.
    DuplicateDirective "duplicate-directive" "only one {0} parser directive can be used",
    InvalidEscape "invalid-escape" "invalid escape token '{0}' does not match ` or \\",
    // Arguments as the syntax phase splits them.
    JsonNotStrings "json-not-strings" "an argument list in JSON form holds strings only",
    KvNeedsTwoArgs "kv-needs-two-args" "{0} must have two arguments: a name and a value",
    KvMissingEquals "kv-missing-equals" "Syntax error - can't find = in {0}: write name=value",
    UnterminatedHeredoc "unterminated-heredoc" "unterminated heredoc: {0} has no end line",
    // Instructions.
    UnknownInstruction "unknown-instruction" "unknown instruction: {0}",
    NeedsArgument "needs-argument" "{0} requires at least one argument",
    NeedsOneArgument "needs-one-argument" "{0} requires exactly one argument",
    NeedsDestination "needs-destination" "{0} requires at least two arguments, the last being where to copy to",
    FromArgCount "from-arg-count" "FROM requires either one or three arguments: an image, or an image, AS and a name",
    BlankName "blank-name" "{0} names can not be blank",
    HeredocDestination "heredoc-destination" "{0} cannot accept a heredoc as a destination",
    UnknownFlag "unknown-flag" "unknown flag: {0}",
    DuplicateFlag "duplicate-flag" "duplicate flag specified: {0}",
    FlagNeedsValue "flag-needs-value" "missing a value on flag: {0}",
    FlagNotBool "flag-not-bool" "expecting boolean value for flag {0}, not: {1}",
    InvalidStageName "invalid-stage-name" "invalid name for build stage: {0}: it starts with a letter and holds letters, digits, - _ and . only",
    NoCurrentStage "no-current-stage" "no build stage in current context: start with FROM",
    OnbuildChained "onbuild-chained" "ONBUILD ONBUILD isn't allowed: a trigger cannot have triggers",
    OnbuildForbidden "onbuild-forbidden" "{0} isn't allowed as an ONBUILD trigger",
    OnbuildNotSingle "onbuild-not-single" "an ONBUILD trigger is a single instruction",
    HealthcheckNoneArgs "healthcheck-none-args" "HEALTHCHECK NONE takes no arguments",
    HealthcheckNoCommand "healthcheck-no-command" "Missing command after HEALTHCHECK CMD",
    HealthcheckUnknownType "healthcheck-unknown-type" "Unknown type {0} in HEALTHCHECK (try CMD or NONE)",
    InvalidDuration "invalid-duration" "time: invalid duration {0}: write a number and a unit, such as 30s or 1m30s",
    DurationTooShort "duration-too-short" "Interval {0} cannot be less than 1ms",
    NegativeRetries "negative-retries" "--retries cannot be negative ({0})",
    InvalidNumber "invalid-number" "invalid number {0}: write digits only",
    VolumeEmpty "volume-empty" "VOLUME specified can not be an empty string",
    ShellNotJson "shell-not-json" "SHELL requires the arguments to be in JSON form",
    // RUN flags.
    MountCsv "mount-csv" "a mount is a list of key=value pairs separated by commas",
    MountFromVariable "mount-from-variable" "'{0}' doesn't support variable expansion, define alias stage instead",
    MountBadType "mount-bad-type" "unsupported mount type {0}: use bind, cache, tmpfs, secret or ssh",
    MountBadSharing "mount-bad-sharing" "unsupported sharing value {0}: use shared, private or locked",
    MountUnexpectedKeyForType "mount-unexpected-key-for-type" "unexpected key '{0}' for mount type '{1}'",
    UnexpectedKey "unexpected-key" "unexpected key '{0}' in '{1}'",
    FieldNeedsValue "field-needs-value" "invalid field '{0}' must be a key=value pair",
    InvalidFieldValue "invalid-field-value" "invalid value {2}",
    MountAttrNotAllowed "mount-attr-not-allowed" "{0} not allowed for {1} type mounts",
    SecretFrom "secret-from" "secret mount should not have a from",
    SecretSharing "secret-sharing" "secret mount should not define sharing",
    SecretNoTarget "secret-no-target" "invalid secret mount: one of source, target required",
    SecretSourceAndId "secret-source-and-id" "both source and id can't be set",
    SharingNotCache "sharing-not-cache" "invalid cache sharing set for {0} mount: sharing is for cache mounts",
    SshSource "ssh-source" "ssh does not support source",
    MountTargetRoot "mount-target-root" "invalid mount target {0}",
    InvalidNetwork "invalid-network" "invalid network mode {0}: use default, none or host",
    InvalidSecurity "invalid-security" "security {0} is not valid: use sandbox or insecure",
    DeviceNameRepeated "device-name-repeated" "device name already set to {0}",
    DeviceCsv "device-csv" "a device is a list of key=value pairs separated by commas",
    DeviceUnsupported "device-unsupported" "device feature needs the labs channel of the Dockerfile frontend",
    // Lint.
    CheckOption "check-option" "invalid check option {0}: write skip=RULE, experimental=RULE or error=true",
    LintFailed "lint-failed" "lint violation found for rules: {0}",
    // Stages and images.
    BaseNameBlank "base-name-blank" "base name ({0}) should not be blank",
    PlatformEmpty "platform-empty" "empty platform value from expression {0}",
    PlatformInvalid "platform-invalid" "failed to parse platform {0}: {1}",
    BadImageReference "bad-image-reference" "invalid reference format: {0}: write [host/]name[:tag][@digest], the name in lower case",
    ImageNotFound "image-not-found" "{0} could not be resolved",
    ImageConfig "image-config" "the config of image {0} cannot be read",
    TargetNotFound "target-not-found" "target stage {0} could not be found",
    Circular "circular" "circular dependency detected on stage: {0}",
    FromFlagVariable "from-flag-variable" "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
    StageIndex "stage-index" "invalid stage index {0}",
    CopyFromUndefined "copy-from-undefined" "cannot copy from stage {0}, it needs to be defined before current stage {1}",
    MountFromUndefined "mount-from-undefined" "cannot mount from stage {0} to {1}, stage needs to be defined before current command",
    // Contexts.
    ContextUnsupported "context-unsupported" "unsupported context source {0} for {1}: use docker-image, oci-layout, local, input, git, http or https",
    ContextNoScheme "context-no-scheme" "invalid context specifier {0} for {1}: it has no scheme",
    ContextInputMissing "context-input-missing" "there is no input {0} for context {1}",
    ContextInput "context-input" "input {0} for context {1} cannot be used",
    ContextRecursion "context-recursion" "context {0} is redirected too often",
    ContextName "context-name" "invalid context name {0}",
    OciLayoutRef "oci-layout-ref" "an OCI layout context needs name@digest, not {0}",
    GitContext "git-context" "invalid git context {0}",
    IgnoreFile "ignore-file" "the ignore file {0} cannot be used: {1}",
    // Words and variables.
    UnsetRequired "unset-required" "failed to process {0}: {1}: {2}",
    BadSubstitution "bad-substitution" "syntax error: bad substitution",
    MissingBrace "missing-brace" "syntax error: missing '}'",
    MissingSlash "missing-slash" "syntax error: missing '/' in a substitution",
    UnsupportedModifier "unsupported-modifier" "unsupported modifier ({0}) in substitution: use - + ? (each also after :), # % or /",
    InvalidPattern "invalid-pattern" "invalid pattern ({0}) in substitution",
    UnclosedQuote "unclosed-quote" "unexpected end of statement while looking for matching {0}",
    NestingTooDeep "nesting-too-deep" "substitutions are nested too deeply",
    ExpansionTooLarge "expansion-too-large" "an expanded text is longer than {0} bytes",
    // COPY and ADD.
    Chmod "chmod" "invalid chmod parameter: '{0}'. it should be octal string and between 0 and 07777",
    ChmodSymbolic "chmod-symbolic" "invalid symbolic mode: write who, how and what, such as u+x,go=r",
    ChecksumMultiple "checksum-multiple" "checksum can't be specified for multiple sources",
    ChecksumSourceKind "checksum-source-kind" "checksum requires HTTP(S) or Git sources",
    ChecksumMismatch "checksum-mismatch" "checksum mismatch {0} != {1}",
    InvalidDigest "invalid-digest" "invalid checksum digest format: write algorithm:hex digits",
    CopyGit "copy-git" "source can't be a git ref for COPY: use ADD",
    CopyUrl "copy-url" "source can't be a URL for COPY: use ADD",
    KeepGitDirConflict "keep-git-dir-conflict" "inconsistent keep-git-dir configuration",
    GitQueryUnknown "git-query-unknown" "unexpected query key {0}",
    GitQueryMulti "git-query-multi" "query key {0} is given twice",
    GitQueryNoValue "git-query-no-value" "query key {0} has no value",
    GitQueryValue "git-query-value" "invalid value for {0}: {1}",
    GitRefConflict "git-ref-conflict" "{0} conflicts: {1} and {2}",
    GitBranchAndTag "git-branch-and-tag" "branch and tag exclude each other",
    DriveLetter "drive-letter" "path {0} cannot be used: only drive C: can be addressed",
    // Other instructions.
    ExposeInvalidPort "expose-invalid-port" "invalid port: {0}: write port[/tcp], or a range of ports",
    ExposeInvalidContainerPort "expose-invalid-container-port" "invalid containerPort: {0}: use 1 to 65535, or a range of them",
    ExposeInvalidHostPort "expose-invalid-host-port" "invalid hostPort: {0}: use 1 to 65535, or a range of them",
    ExposeInvalidIp "expose-invalid-ip" "invalid IP address: {0}",
    ExposeRangeMismatch "expose-range-mismatch" "invalid ranges specified for container and host Ports: {0} and {1}",
    InvalidSignal "invalid-signal" "invalid signal: {0}: give a name such as SIGTERM or a number",
    EpochInvalid "epoch-invalid" "invalid SOURCE_DATE_EPOCH: {0}: give seconds since 1970, context, or the name of a context or stage",
    EpochStage "epoch-stage" "SOURCE_DATE_EPOCH stage {0}",
    // Writing the graph.
    BadExec "bad-exec" "a process needs a program to run",
    InvalidUtf8 "invalid-utf8" "the graph holds text that is not UTF-8",
    // Options.
    BadResolveMode "bad-resolve-mode" "invalid image-resolve-mode: {0}: use default, pull or local",
    BadNetmode "bad-netmode" "invalid netmode {0}: use sandbox, none or host",
    TargetPlatformInvalid "target-platform-invalid" "failed to parse target platform {0}: write os/architecture or os/architecture/variant",
    MultiPlatformConflict "multi-platform-conflict" "several target platforms need multi-platform, which is set to false",
    InvalidOption "invalid-option" "invalid value for option {0}: {1}",
    RemovedOption "removed-option" "option {0} is no longer supported",
    MissingCap "missing-cap" "the build daemon lacks {0}",
    UnsupportedFrontendCap "unsupported-frontend-cap" "unsupported frontend capability {0}",
    UnsupportedRequest "unsupported-request" "unsupported request {0}",
    SbomScanner "sbom-scanner" "the SBOM scanner {0} cannot be used: {1}",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_well() {
        let error = Error::new(Kind::UnknownFlag, ["--mont"])
            .suggest("mont", ["mount", "network"], Case::Sensitive)
            .at(Lines { first: 2, last: 3 });
        assert_eq!(error.to_string(), "unknown flag: --mont (did you mean mount?)");
        assert_eq!(
            Error::new(Kind::FlagNotBool, ["--link", "maybe"]).to_string(),
            "expecting boolean value for flag --link, not: maybe"
        );
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
