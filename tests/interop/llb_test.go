package interop

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

func TestFileOps(t *testing.T) {
	ctx, c := daemon(t)
	at := time.Unix(1600000000, 0)
	other := llb.Scratch().
		File(llb.Mkfile("/x.txt", 0o644, []byte("x"))).
		File(llb.Mkfile("/y.txt", 0o644, []byte("y"))).
		File(llb.Mkfile("/z.bin", 0o644, []byte("z")))
	st := llb.Scratch().
		File(llb.Mkdir("/a/b", 0o711, llb.WithParents(true))).
		File(llb.Mkfile("/a/b/f", 0o604, []byte("data"), llb.WithCreatedTime(at))).
		File(llb.Copy(other, "*.txt", "/texts/", &llb.CopyInfo{AllowWildcard: true, CreateDestPath: true})).
		File(llb.Copy(other, "z.bin", "/a/z", &llb.CopyInfo{Mode: &llb.ChmodOpt{Mode: 0o700}})).
		File(llb.Mkfile("/gone", 0o644, nil).Rm("/gone").Mkfile("/kept", 0o644, nil)).
		File(llb.Rm("/never", llb.WithAllowNotFound(true))).
		File(llb.Symlink("/a/b/f", "/link"))
	opt := client.SolveOpt{}
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, st, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "a/b", "a/b/f", "a/z", "kept", "link", "texts", "texts/x.txt", "texts/y.txt"}, list(t, dir))
	fi, err := os.Stat(filepath.Join(dir, "a/b/f"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o604), fi.Mode())
	require.True(t, fi.ModTime().Equal(at))
	fi, err = os.Stat(filepath.Join(dir, "a/z"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), fi.Mode())
	target, err := os.Readlink(filepath.Join(dir, "link"))
	require.NoError(t, err)
	require.Equal(t, "/a/b/f", target)
}

func TestCopyFilters(t *testing.T) {
	ctx, c := daemon(t)
	src := mount(t, tree(t, map[string]string{"d/a.go": "1", "d/a_test.go": "2", "d/sub/b.go": "3", "d/c.txt": "4"}))
	local := llb.Local("src", llb.ExcludePatterns([]string{"busybox"}))
	st := llb.Scratch().File(llb.Copy(local, "/", "/out", &llb.CopyInfo{
		CopyDirContentsOnly: true,
		CreateDestPath:      true,
		IncludePatterns:     []string{"**/*.go"},
		ExcludePatterns:     []string{"**/*_test.go"},
	}))
	opt := client.SolveOpt{LocalMounts: fromDir(t, t.TempDir()).LocalMounts}
	opt.LocalMounts["src"] = src
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, st, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"out", "out/d", "out/d/a.go", "out/d/sub", "out/d/sub/b.go"}, list(t, dir))
}

func TestExecMountsAndOutputs(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	in := llb.Scratch().File(llb.Mkdir("/d", 0o755)).File(llb.Mkfile("/d/in", 0o644, []byte("input")))
	run := root.Run(
		sh("cat /in/in > /out/result; echo more > /scratch/s; touch /root-only"),
		llb.AddMount("/in", in, llb.SourcePath("/d"), llb.Readonly),
		llb.AddMount("/scratch", llb.Scratch(), llb.Tmpfs()),
	)
	out := run.AddMount("/out", llb.Scratch())
	opt := client.SolveOpt{LocalMounts: mounts}
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, out, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"result"}, list(t, dir))
	require.Equal(t, "input", read(t, dir, "result"))
}

func TestMergeAndDiff(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	base := llb.Scratch().
		File(llb.Mkfile("/keep", 0o644, []byte("k"))).
		File(llb.Mkfile("/drop", 0o644, []byte("d"))).
		File(llb.Mkdir("/dir", 0o755)).
		File(llb.Mkfile("/dir/inner", 0o644, nil))
	left := base.File(llb.Mkfile("/left", 0o644, []byte("l"))).File(llb.Rm("/drop"))
	right := llb.Scratch().File(llb.Mkfile("/keep", 0o600, []byte("over")))
	merged := llb.Merge([]llb.State{left, right})

	opt := client.SolveOpt{}
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, merged, opt)
	require.NoError(t, err)
	require.Equal(t, []string{"dir", "dir/inner", "keep", "left"}, list(t, dir))
	require.Equal(t, "over", read(t, dir, "keep"))

	changed := root.Run(sh("echo new > /new; rm -r /usr 2>/dev/null; true")).Root()
	opt = client.SolveOpt{LocalMounts: mounts}
	dir = into(t, &opt)
	_, _, err = solveState(t, ctx, c, llb.Diff(root, changed), opt)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "new"))
	require.NoFileExists(t, filepath.Join(dir, "bin/busybox"))

	// What a diff removes is removed where it is merged.
	opt = client.SolveOpt{}
	dir = into(t, &opt)
	_, _, err = solveState(t, ctx, c, llb.Merge([]llb.State{base, llb.Diff(base, left)}), opt)
	require.NoError(t, err)
	require.Equal(t, []string{"dir", "dir/inner", "keep", "left"}, list(t, dir))
}

func TestCacheMountSharing(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	id := unique()
	for _, script := range []string{"echo a >> /cache/log", "echo b >> /cache/log", "cp /cache/log /log"} {
		st := root.Run(sh(script), llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountLocked))).Root()
		opt := client.SolveOpt{LocalMounts: mounts}
		dir := into(t, &opt)
		_, _, err := solveState(t, ctx, c, st, opt)
		require.NoError(t, err)
		if script == "cp /cache/log /log" {
			require.Equal(t, "a\nb\n", read(t, dir, "log"))
		}
	}
}

func TestParallelBranchesShareTheirBase(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	shared := root.Run(sh("cat /proc/sys/kernel/random/uuid > /id # " + unique())).Root()
	var parts []llb.State
	for _, name := range []string{"a", "b", "c"} {
		run := shared.Run(sh("cp /id /out/"+name), llb.IgnoreCache)
		parts = append(parts, run.AddMount("/out", llb.Scratch()))
	}
	opt := client.SolveOpt{LocalMounts: mounts}
	dir := into(t, &opt)
	_, r, err := solveState(t, ctx, c, llb.Merge(parts), opt)
	require.NoError(t, err)
	require.Equal(t, read(t, dir, "a"), read(t, dir, "b"))
	require.Equal(t, read(t, dir, "a"), read(t, dir, "c"))
	runs := 0
	for _, v := range r.vertexes {
		if v.Completed != nil && v.Error == "" && len(v.Name) > 8 && v.Name[:8] == "sh -c cat"[:8] {
			runs++
		}
	}
	require.NotZero(t, runs)
}

func TestInvalidGraph(t *testing.T) {
	ctx, c := daemon(t)
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, nil)).Marshal(ctx)
	require.NoError(t, err)
	def.Def = def.Def[1:]
	_, err = c.Solve(ctx, def, client.SolveOpt{}, nil)
	require.Error(t, err)
}

func TestUnknownLocal(t *testing.T) {
	ctx, c := daemon(t)
	st := llb.Scratch().File(llb.Copy(llb.Local("nobody"), "/", "/"))
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{"nobody": mount(t, t.TempDir())}}
	_, _, err := solveState(t, ctx, c, st, opt)
	require.NoError(t, err, "an empty folder is a folder")
}
