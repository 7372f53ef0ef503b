package interop

import (
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"
)

// forget removes all results from the daemon.
func forget(t *testing.T) {
	t.Helper()
	ctx, c := daemon(t)
	require.NoError(t, c.Prune(ctx, nil, client.PruneAll))
}

func localCache(kind, dir string, attrs map[string]string) []client.CacheOptionsEntry {
	all := map[string]string{kind: dir}
	for k, v := range attrs {
		all[k] = v
	}
	return []client.CacheOptionsEntry{{Type: "local", Attrs: all}}
}

func TestLocalCacheSurvivesPrune(t *testing.T) {
	ctx, c := daemon(t)
	for _, mode := range []string{"min", "max"} {
		root, mounts := tools(t)
		st := root.
			Run(sh("cat /proc/sys/kernel/random/uuid > /id # "+unique()), llb.WithCustomName("first")).Root().
			Run(sh("cp /id /copy"), llb.WithCustomName("second")).Root()
		cache := t.TempDir()
		opt := client.SolveOpt{LocalMounts: mounts, CacheExports: localCache("dest", cache, map[string]string{"mode": mode})}
		dir := into(t, &opt)
		_, _, err := solveState(t, ctx, c, st, opt)
		require.NoError(t, err)
		id := read(t, dir, "copy")

		forget(t)
		opt = client.SolveOpt{LocalMounts: mounts, CacheImports: localCache("src", cache, nil)}
		dir = into(t, &opt)
		_, r, err := solveState(t, ctx, c, st, opt)
		require.NoError(t, err)
		require.Equal(t, id, read(t, dir, "copy"), mode)
		require.True(t, r.named(t, "first").Cached, mode)
		require.True(t, r.named(t, "second").Cached, mode)
		require.NotNil(t, r.named(t, "importing cache manifest from local:").Completed)
	}
}

func TestNoCacheFilter(t *testing.T) {
	ctx, c := daemon(t)
	text := "FROM base AS one\nRUN cat /proc/sys/kernel/random/uuid > /one\n" +
		"FROM base AS two\nRUN cat /proc/sys/kernel/random/uuid > /two # " + unique() + "\n" +
		"FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n"
	build := func(filter string) (string, string) {
		opt := dockerfile(t, text, nil)
		if filter != "" {
			opt.FrontendAttrs["no-cache"] = filter
		}
		dir := into(t, &opt)
		_, _, err := solve(ctx, c, opt)
		require.NoError(t, err)
		return read(t, dir, "one"), read(t, dir, "two")
	}
	one, two := build("")
	againOne, againTwo := build("two")
	require.Equal(t, one, againOne)
	require.NotEqual(t, two, againTwo)
	lastOne, lastTwo := build("")
	require.Equal(t, againOne, lastOne)
	// The newest of several results is taken.
	require.Equal(t, againTwo, lastTwo)
}
