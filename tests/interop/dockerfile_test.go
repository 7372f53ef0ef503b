package interop

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/stretchr/testify/require"
)

func TestDockerfile(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
ARG GREETING=hello
WORKDIR /work
COPY sub/ ./sub/
RUN echo "$GREETING" > greeting && cat sub/a sub/b > all
FROM base AS other
RUN echo other > /other
FROM scratch
COPY --from=base /work/ /
COPY --from=other /other /
`, map[string]string{"sub/a": "A", "sub/b": "B"})
	opt.FrontendAttrs["build-arg:GREETING"] = "servus"
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "servus\n", read(t, dir, "greeting"))
	require.Equal(t, "AB", read(t, dir, "all"))
	require.Equal(t, "other\n", read(t, dir, "other"))
}

func TestDockerfileClientDriven(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "COPY f /f\nRUN cp /f /g\n", map[string]string{"f": "content"})
	dir := into(t, &opt)
	_, r, err := solveClient(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "content", read(t, dir, "g"))
	for _, name := range []string{
		"[internal] load build definition from Dockerfile",
		"[internal] load .dockerignore",
		"[internal] load build context",
		"RUN cp /f /g",
		"exporting to client directory",
	} {
		v := r.named(t, name)
		require.NotNil(t, v.Completed, name)
		require.Empty(t, v.Error, name)
	}
}

func TestTargetAndUnusedStages(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
FROM base AS wanted
RUN echo yes > /wanted
FROM base AS broken
RUN exit 1
`, nil)
	opt.FrontendAttrs["target"] = "wanted"
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "yes\n", read(t, dir, "wanted"))
}

func TestDockerignore(t *testing.T) {
	ctx, c := daemon(t)
	opt := fromDir(t, tree(t, map[string]string{
		"Dockerfile":    "FROM scratch\nCOPY . /\n",
		".dockerignore": "*.log\nbusybox\nsub/*\n!sub/keep\n",
		"a":             "a", "b.log": "b", "sub/keep": "k", "sub/drop": "d", "sub/x.log": "x",
	}))
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, []string{".dockerignore", "Dockerfile", "a", "sub", "sub/keep"}, list(t, dir))
}

// list is every path below a folder.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	require.NoError(t, filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." {
			out = append(out, rel)
		}
		return err
	}))
	return out
}

func TestFailureNamesTheLine(t *testing.T) {
	ctx, c := daemon(t)
	for name, run := range map[string]func() error{
		"daemon": func() error {
			_, _, err := solve(ctx, c, dockerfile(t, "RUN echo before; exit 7\n", nil))
			return err
		},
		"client": func() error {
			_, _, err := solveClient(ctx, c, dockerfile(t, "RUN echo before; exit 7\n", nil))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := run()
			require.ErrorContains(t, err, `process "/bin/sh -c echo before; exit 7" did not complete successfully: exit code: 7`)
			sources := errdefs.Sources(err)
			require.Len(t, sources, 1)
			require.Equal(t, "Dockerfile", sources[0].Info.Filename)
			require.Equal(t, int32(strings.Count(base, "\n")+1), sources[0].Ranges[0].Start.Line)
			require.Contains(t, string(sources[0].Info.Data), "exit 7")
			var vertex *errdefs.VertexError
			require.ErrorAs(t, err, &vertex)
			require.Contains(t, vertex.Digest, "sha256:")
		})
	}
}

func TestFailureKeepsOutput(t *testing.T) {
	ctx, c := daemon(t)
	_, r, err := solve(ctx, c, dockerfile(t, "RUN echo to-stdout; echo to-stderr >&2; exit 1\n", nil))
	require.Error(t, err)
	v := r.named(t, "RUN echo to-stdout")
	require.Contains(t, v.Error, "exit code: 1")
	require.NotNil(t, v.Completed)
	require.Contains(t, r.output(v), "to-stdout\n")
	require.Contains(t, r.output(v), "to-stderr\n")
	streams := map[int]string{}
	for _, l := range r.logs {
		streams[l.Stream] += string(l.Data)
	}
	require.Equal(t, "to-stdout\n", streams[1])
	require.Equal(t, "to-stderr\n", streams[2])
}

func TestSyntaxErrorHasSource(t *testing.T) {
	ctx, c := daemon(t)
	opt := fromDir(t, tree(t, map[string]string{"Dockerfile": "FROM scratch\nFOO bar\n"}))
	_, _, err := solve(ctx, c, opt)
	require.ErrorContains(t, err, "unknown instruction: FOO")
	sources := errdefs.Sources(err)
	require.Len(t, sources, 1)
	require.Equal(t, int32(2), sources[0].Ranges[0].Start.Line)
}

func TestMissingFileFails(t *testing.T) {
	ctx, c := daemon(t)
	_, _, err := solve(ctx, c, dockerfile(t, "COPY nothing /\n", nil))
	require.ErrorContains(t, err, `"/nothing": not found`)
}

func TestMissingDockerfileFails(t *testing.T) {
	ctx, c := daemon(t)
	_, _, err := solve(ctx, c, fromDir(t, tree(t, nil)))
	require.ErrorContains(t, err, "failed to read dockerfile: open Dockerfile: no such file or directory")
}

func TestSecondBuildIsCached(t *testing.T) {
	ctx, c := daemon(t)
	text := "COPY f /f\nRUN echo " + unique() + " > /id && cat /f >> /id\n"
	files := map[string]string{"f": "1"}
	opt := dockerfile(t, text, files)
	first := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.False(t, r.named(t, "RUN echo").Cached)

	// Another folder, other times: content decides.
	opt = dockerfile(t, text, files)
	second := into(t, &opt)
	_, r, err = solve(ctx, c, opt)
	require.NoError(t, err)
	require.True(t, r.named(t, "RUN echo").Cached)
	require.Equal(t, read(t, first, "id"), read(t, second, "id"))

	opt = dockerfile(t, text, map[string]string{"f": "2"})
	third := into(t, &opt)
	_, r, err = solve(ctx, c, opt)
	require.NoError(t, err)
	require.False(t, r.named(t, "RUN echo").Cached)
	require.True(t, strings.HasSuffix(read(t, third, "id"), "2"))
}

func TestNoCache(t *testing.T) {
	ctx, c := daemon(t)
	text := "RUN cat /proc/sys/kernel/random/uuid > /id\n"
	opt := dockerfile(t, text, nil)
	first := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	opt = dockerfile(t, text, nil)
	opt.FrontendAttrs["no-cache"] = ""
	second := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.False(t, r.named(t, "RUN cat").Cached)
	require.NotEqual(t, read(t, first, "id"), read(t, second, "id"))
}

func TestSecrets(t *testing.T) {
	ctx, c := daemon(t)
	file := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(file, []byte("from-file"), 0o600))
	t.Setenv("INTEROP_SECRET", "from-env")
	store, err := secretsprovider.NewStore([]secretsprovider.Source{
		{ID: "file", FilePath: file},
		{ID: "env", Env: "INTEROP_SECRET"},
	})
	require.NoError(t, err)
	attach := []session.Attachable{secretsprovider.NewSecretProvider(store)}

	opt := dockerfile(t, `
RUN --mount=type=secret,id=file,mode=0440 \
    --mount=type=secret,id=env,target=/key \
    --mount=type=secret,id=env,env=KEY \
    --mount=type=secret,id=none,target=/none \
    cat /run/secrets/file /key > /out && echo "$KEY" >> /out && \
    stat -c %a /run/secrets/file /key >> /out && test ! -e /none && echo `+unique()+`
RUN test ! -e /run/secrets/file && test ! -s /key
`, nil)
	opt.Session = attach
	dir := into(t, &opt)
	_, _, err = solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "from-filefrom-envfrom-env\n440\n400\n", read(t, dir, "out"))

	opt = dockerfile(t, "RUN --mount=type=secret,id=none,required echo "+unique()+"\n", nil)
	opt.Session = attach
	_, _, err = solve(ctx, c, opt)
	require.ErrorContains(t, err, "none: not found")
}

func TestCacheMount(t *testing.T) {
	ctx, c := daemon(t)
	id := unique()
	run := func(script string) string {
		opt := dockerfile(t, "RUN --mount=type=cache,id="+id+",target=/cache "+script+" # "+unique()+"\n", nil)
		dir := into(t, &opt)
		_, _, err := solve(ctx, c, opt)
		require.NoError(t, err)
		require.NoFileExists(t, filepath.Join(dir, "cache", "kept"))
		if data, err := os.ReadFile(filepath.Join(dir, "out")); err == nil {
			return string(data)
		}
		return ""
	}
	run("echo one > /cache/kept")
	require.Equal(t, "one\n", run("cp /cache/kept /out"))
	run("echo two >> /cache/kept")
	require.Equal(t, "one\ntwo\n", run("cp /cache/kept /out"))
}

func TestMounts(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
FROM base AS src
RUN echo bound > /file
FROM base
RUN --mount=type=bind,from=src,source=/file,target=/in \
    --mount=type=tmpfs,target=/tmp/t \
    --mount=type=bind,from=src,target=/src,rw \
    cat /in > /out && ! touch /in 2>/dev/null && \
    grep -q ' /tmp/t tmpfs ' /proc/mounts && touch /tmp/t/x && echo w > /src/new && cat /src/new >> /out
RUN test ! -e /src/new && test ! -s /in
`, nil)
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "bound\nw\n", read(t, dir, "out"))
}

func TestHeredocsAndShell(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
ENV NAME=world
COPY <<EOF /text
hello $NAME
EOF
RUN <<EOF
set -e
echo first > /steps
echo second >> /steps
EOF
SHELL ["/bin/busybox", "sh", "-ec"]
RUN false || echo survived > /shell
`, nil)
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "hello world\n", read(t, dir, "text"))
	require.Equal(t, "first\nsecond\n", read(t, dir, "steps"))
	require.Equal(t, "survived\n", read(t, dir, "shell"))
}

func TestRunEnvironment(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
COPY <<EOF /etc/passwd
root:x:0:0:root:/root:/bin/sh
joe:x:1000:1001:joe:/home/joe:/bin/sh
EOF
COPY --chown=joe:1001 --chmod=640 busybox /owned
WORKDIR /some/where
USER joe
RUN echo "$(id -u):$(id -g):$PWD:$HOME"
USER root
RUN stat -c '%u:%g:%a' /owned > /owner
RUN hostname > /host; cat /etc/hosts > /hosts; cat /etc/resolv.conf > /resolv
`, nil)
	opt.FrontendAttrs["hostname"] = "builder"
	opt.FrontendAttrs["add-hosts"] = "db=10.1.2.3"
	dir := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "1000:1001:/some/where:/home/joe\n", r.output(r.named(t, "RUN echo")))
	require.Equal(t, "1000:1001:640\n", read(t, dir, "owner"))
	require.Equal(t, "builder\n", read(t, dir, "host"))
	require.Regexp(t, `(?m)^10\.1\.2\.3\s+db$`, read(t, dir, "hosts"))
}

func TestOutline(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "# NAME is who\nARG NAME=me\nRUN --mount=type=secret,id=key true\n", nil)
	opt.FrontendAttrs["requestid"] = "frontend.outline"
	opt.FrontendAttrs["frontend.caps"] = "moby.buildkit.frontend.subrequests"
	meta := metadata(t, ctx, c, opt)
	require.Contains(t, string(meta["result.json"]), `"NAME"`)
	require.Contains(t, string(meta["result.json"]), `"key"`)
	require.Contains(t, string(meta["result.txt"]), "BUILD ARG")
}

func TestLintWarnings(t *testing.T) {
	ctx, c := daemon(t)
	_, r, err := solve(ctx, c, dockerfile(t, "from base as Upper\n", nil))
	require.NoError(t, err)
	var short []string
	for _, w := range r.warnings {
		short = append(short, string(w.Short))
		require.Equal(t, 1, w.Level)
		require.NotEmpty(t, w.URL)
		require.NotEmpty(t, w.Range)
	}
	require.Len(t, short, 2)
	require.Contains(t, short[0]+short[1], "StageNameCasing: Stage name 'Upper' should be lowercase (line 5)")
}

func TestNamedContexts(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "FROM scratch\nCOPY --from=extra file /\n", nil)
	opt.LocalMounts["more"] = mount(t, tree(t, map[string]string{"file": "named"}))
	opt.FrontendAttrs["context:extra"] = "local:more"
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "named", read(t, dir, "file"))
}

func TestEntitlementIsNeeded(t *testing.T) {
	ctx, c := daemon(t)
	_, _, err := solve(ctx, c, dockerfile(t, "RUN --security=insecure echo "+unique()+"\n", nil))
	require.ErrorContains(t, err, "security.insecure is not allowed")
	opt := dockerfile(t, "RUN true\n", nil)
	opt.AllowedEntitlements = []string{"no.such"}
	_, _, err = solve(ctx, c, opt)
	require.Error(t, err)
}

func TestUnknownExporter(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "RUN true\n", nil)
	opt.Exports = []client.ExportEntry{{Type: "nonsense"}}
	_, _, err := solve(ctx, c, opt)
	require.ErrorContains(t, err, `exporter "nonsense" could not be found`)
}
