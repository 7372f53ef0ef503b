package interop

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

func TestSeveralPlatforms(t *testing.T) {
	ctx, c := daemon(t)
	opt := fromDir(t, tree(t, map[string]string{
		"Dockerfile": "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /arch\n",
		"amd64":      "for amd64", "arm64": "for arm64",
	}))
	opt.FrontendAttrs["platform"] = "linux/amd64,linux/arm64"
	dir := into(t, &opt)
	var out buffer
	opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterOCI, Output: toBuffer(&out)})
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "for amd64", read(t, dir, "linux_amd64", "arch"))
	require.Equal(t, "for arm64", read(t, dir, "linux_arm64", "arch"))

	files, _ := untar(t, &out)
	var top, index ocispecs.Index
	require.NoError(t, json.Unmarshal(files["index.json"], &top))
	require.Len(t, top.Manifests, 1)
	require.NoError(t, json.Unmarshal(files["blobs/sha256/"+top.Manifests[0].Digest.Encoded()], &index))
	require.Len(t, index.Manifests, 2)
	require.Equal(t, "amd64", index.Manifests[0].Platform.Architecture)
	require.Equal(t, "arm64", index.Manifests[1].Platform.Architecture)
}

func TestCopyFlags(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
COPY --link sub /linked/
COPY --parents sub/deep/x.txt sub/y.txt /parents/
COPY --exclude=*.txt sub /excluded/
COPY --chown=5:6 --chmod=u=rw,go= sub/y.txt /owned
COPY sub/*.txt /globbed/
RUN stat -c %u:%g:%a /owned > /owner
`, map[string]string{"sub/y.txt": "y", "sub/z.md": "z", "sub/deep/x.txt": "x", "sub/deep/w.md": "w"})
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "y", read(t, dir, "linked/y.txt"))
	require.Equal(t, "x", read(t, dir, "linked/deep/x.txt"))
	require.Equal(t, []string{"sub", "sub/deep", "sub/deep/x.txt", "sub/y.txt"}, list(t, filepath.Join(dir, "parents")))
	require.NoFileExists(t, filepath.Join(dir, "excluded/y.txt"))
	require.FileExists(t, filepath.Join(dir, "excluded/z.md"))
	require.Equal(t, []string{"y.txt"}, list(t, filepath.Join(dir, "globbed")))
	require.Equal(t, "5:6:600\n", read(t, dir, "owner"))
}

func TestNetworkNone(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "RUN --network=none ls /sys/class/net > /devices\n", nil)
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "lo\n", read(t, dir, "devices"))
}

func TestSandbox(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
RUN echo pid $$ > /pid; ls /proc | grep -c '^[0-9]' >> /pid
RUN grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status > /caps
RUN { mount -t tmpfs none /mnt 2>&1; echo > /proc/sysrq-trigger; echo > /proc/sys/kernel/hostname; } > /refused 2>&1; true
RUN test -c /dev/null && test -c /dev/urandom && test -d /dev/shm && test -d /dev/pts && df /dev/shm | tail -1 > /shm
`, nil)
	opt.FrontendAttrs["shm-size"] = "8388608"
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Contains(t, read(t, dir, "pid"), "pid 1\n")
	caps := read(t, dir, "caps")
	require.Contains(t, caps, "CapEff:\t00000000a80425fb\n")
	require.Contains(t, caps, "Seccomp:\t2\n")
	require.Contains(t, read(t, dir, "shm"), "8192")
}

func TestWhiteouts(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
COPY d /d
RUN rm /d/a && rm -r /d/sub && mkdir /d/sub && echo new > /d/sub/new && mv /d/b /d/c && ln /d/c /d/hard && ln -s c /d/soft
`, map[string]string{"d/a": "a", "d/b": "b", "d/sub/old": "old"})
	dir := into(t, &opt)
	var out buffer
	opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterOCI, Output: toBuffer(&out)})
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"c", "hard", "soft", "sub", "sub/new"}, list(t, filepath.Join(dir, "d")))
	one, err := os.Stat(filepath.Join(dir, "d/c"))
	require.NoError(t, err)
	two, err := os.Stat(filepath.Join(dir, "d/hard"))
	require.NoError(t, err)
	require.True(t, os.SameFile(one, two), "hard links stay hard links")

	files, _ := untar(t, &out)
	manifest, _ := layout(t, files)
	last := manifest.Layers[len(manifest.Layers)-1]
	names := gunzipNames(t, files["blobs/sha256/"+last.Digest.Encoded()])
	for _, name := range []string{"d/.wh.a", "d/.wh.b", "d/c", "d/sub/new"} {
		require.Contains(t, names, name)
	}
	require.NotContains(t, names, "d/sub/old")
}

func TestDefaultsFromParentImage(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, `
FROM base AS parent
ENV ONE=1
WORKDIR /w
USER 12
FROM parent
ENV TWO=${ONE}2
RUN echo "$ONE $TWO $(id -u) $PWD $PATH"
`, nil)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "1 12 12 /w /bin\n", r.output(r.named(t, "RUN echo")))
}

func TestManyStepsAndStages(t *testing.T) {
	ctx, c := daemon(t)
	text := ""
	join := "FROM scratch\n"
	for i := range 20 {
		name := string(rune('a' + i))
		text += "FROM base AS s" + name + "\nRUN echo " + name + " > /" + name + "\n"
		join += "COPY --from=s" + name + " /" + name + " /\n"
	}
	opt := dockerfile(t, text+join, nil)
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Len(t, list(t, dir), 20)
}
