package interop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// serve answers one path with content, with an ETag, and counts whole answers.
func serve(t *testing.T, path string, content []byte) (string, *atomic.Int32) {
	t.Helper()
	whole := &atomic.Int32{}
	tag := `"` + digest.FromBytes(content).Encoded() + `"`
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
		if r.Method == http.MethodGet {
			whole.Add(1)
		}
		w.Write(content)
	}))
	t.Cleanup(s.Close)
	return s.URL + path, whole
}

func TestHTTPSource(t *testing.T) {
	ctx, c := daemon(t)
	content := []byte("over http " + unique())
	url, whole := serve(t, "/dir/name", content)
	for range 2 {
		st := llb.HTTP(url, llb.Checksum(digest.FromBytes(content)), llb.Filename("other"), llb.Chmod(0o751))
		opt := client.SolveOpt{}
		dir := into(t, &opt)
		_, _, err := solveState(t, ctx, c, st, opt)
		require.NoError(t, err)
		require.Equal(t, []string{"other"}, list(t, dir))
		require.Equal(t, string(content), read(t, dir, "other"))
		fi, err := os.Stat(filepath.Join(dir, "other"))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o751), fi.Mode())
		require.Equal(t, int64(1700000000), fi.ModTime().Unix())
	}
	require.LessOrEqual(t, whole.Load(), int32(1), "the second build asks with the tag it knows")

	_, _, err := solveState(t, ctx, c, llb.HTTP(url, llb.Checksum(digest.FromString("else"))), client.SolveOpt{})
	require.Error(t, err)
	_, _, err = solveState(t, ctx, c, llb.HTTP(url+"-none"), client.SolveOpt{})
	require.ErrorContains(t, err, "404")
}

func archive(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	gz := gzip.NewWriter(&out)
	tw := tar.NewWriter(gz)
	for name, content := range files {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Uid: 3, Gid: 4, Size: int64(len(content))}))
		_, err := tw.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	require.NoError(t, gz.Close())
	return out.Bytes()
}

func TestAdd(t *testing.T) {
	ctx, c := daemon(t)
	packed := archive(t, map[string]string{"sub/inner": "unpacked"})
	url, _ := serve(t, "/file.tgz", packed)
	opt := dockerfile(t, `
ADD local.tgz /local/
ADD `+url+` /fetched/
ADD --chmod=600 `+url+` /renamed
ADD --unpack=true `+url+` /remote/
RUN stat -c %u:%g:%a /local/sub/inner > /owner
`, map[string]string{"local.tgz": string(packed)})
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "unpacked", read(t, dir, "local/sub/inner"))
	require.Equal(t, "unpacked", read(t, dir, "remote/sub/inner"))
	require.Equal(t, string(packed), read(t, dir, "fetched/file.tgz"))
	require.Equal(t, string(packed), read(t, dir, "renamed"))
	require.Equal(t, "3:4:640\n", read(t, dir, "owner"))
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@a")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

// gitDaemon serves a repository with two commits, a tag and a branch over git://.
func gitDaemon(t *testing.T) (url, first, second string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	parent := t.TempDir()
	repo := filepath.Join(parent, "repo")
	require.NoError(t, os.Mkdir(repo, 0o755))
	git(t, repo, "init", "-q", "-b", "main")
	write := func(name, content string) {
		path := filepath.Join(repo, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
		git(t, repo, "add", ".")
		git(t, repo, "commit", "-q", "-m", name)
	}
	write("file", "one "+unique())
	git(t, repo, "tag", "-a", "v1", "-m", "v1")
	first = git(t, repo, "rev-parse", "HEAD")
	write("sub/Dockerfile", "FROM scratch\nCOPY . /\n")
	write("sub/inner", "two")
	second = git(t, repo, "rev-parse", "HEAD")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cmd := exec.Command("git", "daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1",
		fmt.Sprintf("--port=%d", port), "--base-path="+parent, parent)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	address := fmt.Sprintf("127.0.0.1:%d", port)
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond)
	return "git://" + address + "/repo", first, second
}

func TestGitSource(t *testing.T) {
	ctx, c := daemon(t)
	url, first, second := gitDaemon(t)
	export := func(st llb.State) []string {
		opt := client.SolveOpt{}
		dir := into(t, &opt)
		_, _, err := solveState(t, ctx, c, st, opt)
		require.NoError(t, err)
		return list(t, dir)
	}
	require.Equal(t, []string{"file", "sub", "sub/Dockerfile", "sub/inner"}, export(llb.Git(url, "main")))
	require.Equal(t, []string{"file"}, export(llb.Git(url, "v1")))
	require.Equal(t, []string{"file"}, export(llb.Git(url, first)))
	require.Equal(t, []string{"Dockerfile", "inner"}, export(llb.Git(url, "main", llb.GitSubDir("sub"))))
	require.Contains(t, export(llb.Git(url, second, llb.KeepGitDir())), ".git")

	_, _, err := solveState(t, ctx, c, llb.Git(url, "no-such-branch"), client.SolveOpt{})
	require.Error(t, err)
}

func TestGitContext(t *testing.T) {
	ctx, c := daemon(t)
	url, _, _ := gitDaemon(t)
	opt := client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"context": url + "#main:sub"},
		LocalMounts:   map[string]fsutil.FS{},
	}
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"Dockerfile", "inner"}, list(t, dir))
}

// registry is the host of a registry without authentication that the daemon can reach.
func registry(t *testing.T) string {
	t.Helper()
	host := os.Getenv("RBUILD_TEST_REGISTRY")
	if host == "" {
		t.Skip("RBUILD_TEST_REGISTRY does not name a registry")
	}
	return host
}

func push(t *testing.T, ctx context.Context, c *client.Client, name string) string {
	t.Helper()
	opt := imageBuild(t)
	opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}}}
	resp, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	pushed := false
	for _, s := range r.statuses {
		pushed = pushed || s.ID == "pushing layers"
	}
	require.True(t, pushed)
	return resp.ExporterResponse["containerimage.digest"]
}

func TestPushAndPull(t *testing.T) {
	host := registry(t)
	ctx, c := daemon(t)
	name := host + "/interop/" + unique() + ":1"
	dgst := push(t, ctx, c, name)
	for _, ref := range []string{name, strings.TrimSuffix(name, ":1") + "@" + dgst} {
		opt := fromDir(t, tree(t, map[string]string{
			"Dockerfile": "FROM " + ref + "\nUSER 0\nRUN [\"/bin/busybox\", \"cp\", \"/f\", \"/g\"]\n",
		}))
		dir := into(t, &opt)
		_, r, err := solve(ctx, c, opt)
		require.NoError(t, err)
		require.Equal(t, "file", read(t, dir, "g"))
		r.named(t, "[internal] load metadata for "+ref)
	}
	opt := fromDir(t, tree(t, map[string]string{"Dockerfile": "FROM " + host + "/interop/none\n"}))
	_, _, err := solve(ctx, c, opt)
	require.ErrorContains(t, err, host+"/interop/none:latest: not found")
}

func TestRegistryCache(t *testing.T) {
	host := registry(t)
	ctx, c := daemon(t)
	ref := host + "/interop/cache:" + unique()
	text := "RUN cat /proc/sys/kernel/random/uuid > /id # " + unique() + "\n"
	opt := dockerfile(t, text, nil)
	opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": ref, "mode": "max"}}}
	first := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.NoError(t, prune(ctx, c))
	opt = dockerfile(t, text, nil)
	opt.CacheImports = []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": ref}}}
	second := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	r.named(t, "importing cache manifest from "+ref)
	require.Equal(t, read(t, first, "id"), read(t, second, "id"))
}
