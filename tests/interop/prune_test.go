package interop

import (
	"context"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/util/entitlements"
	"github.com/stretchr/testify/require"
)

// pruned prunes and returns the ids of what went.
func pruned(t *testing.T, ctx context.Context, c *client.Client, opts ...client.PruneOption) map[string]bool {
	t.Helper()
	ch := make(chan client.UsageInfo)
	gone := map[string]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range ch {
			gone[u.ID] = true
		}
	}()
	err := c.Prune(ctx, ch, opts...)
	close(ch)
	<-done
	require.NoError(t, err)
	return gone
}

// released waits until a build's record is no longer in use.
func released(t *testing.T, ctx context.Context, c *client.Client, filter string) *client.UsageInfo {
	t.Helper()
	var found *client.UsageInfo
	require.Eventually(t, func() bool {
		for _, u := range usage(t, ctx, c, filter) {
			if !u.InUse {
				found = u
				return true
			}
		}
		return false
	}, 20*time.Second, 100*time.Millisecond, filter)
	return found
}

func TestDiskUsageFilters(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	id := unique()
	st := root.Run(sh("touch /cache/f /f # "+id),
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountShared))).Root()
	_, _, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
	require.NoError(t, err)
	step := released(t, ctx, c, "type==regular,description~="+id)
	require.False(t, step.Mutable)
	require.NotNil(t, step.LastUsedAt)
	require.NotZero(t, step.UsageCount)

	find := func(filter ...string) int { return len(usage(t, ctx, c, filter...)) }
	require.Equal(t, 1, find("id=="+step.ID))
	require.Equal(t, 1, find("id=="+step.ID, "id==nothing"), "one of several has to match")
	require.Equal(t, 0, find("id=="+step.ID+",mutable"))
	require.Equal(t, 1, find("id=="+step.ID+",immutable"))
	require.Equal(t, 1, find("type==exec.cachemount,description~="+id))
	require.Equal(t, 1, find("mutable,description~="+id))
	require.Equal(t, 1, find("parents=="+step.Parents[0]+",description~="+id))
	require.Equal(t, 0, find("id=="+step.ID+",inuse"))
	_, err = c.DiskUsage(ctx, client.WithFilter([]string{"type=="}))
	require.Error(t, err)
}

func TestPruneFiltersAndAges(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	id := unique()
	st := root.Run(sh("touch /cache/f /f # "+id),
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountShared))).Root()
	_, _, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
	require.NoError(t, err)
	step := released(t, ctx, c, "type==regular,description~="+id)
	mount := released(t, ctx, c, "type==exec.cachemount,description~="+id)

	mine := client.WithFilter([]string{"description~=" + id})
	require.Empty(t, pruned(t, ctx, c, mine, client.WithKeepOpt(time.Hour, 0, 0, 0)), "used just now")
	require.Empty(t, pruned(t, ctx, c, mine, client.WithKeepOpt(0, 0, 1<<50, 0)), "less is used")
	require.Empty(t, pruned(t, ctx, c, mine, client.WithKeepOpt(0, 0, 0, 1)), "enough is free")
	gone := pruned(t, ctx, c, client.WithFilter([]string{"type==exec.cachemount,description~=" + id}))
	require.Equal(t, map[string]bool{mount.ID: true}, gone)
	gone = pruned(t, ctx, c, mine)
	require.Equal(t, map[string]bool{step.ID: true}, gone)
}

func TestPruneSparesWhatRuns(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	id := unique()
	st := root.Run(sh("echo first > /first # "+id)).Root().Run(sh("sleep 3; cat /first # " + id)).Root()
	done := make(chan error, 1)
	go func() {
		_, _, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
		done <- err
	}()
	require.Eventually(t, func() bool {
		return len(usage(t, ctx, c, "inuse,immutable,description~="+id)) > 0
	}, 20*time.Second, 50*time.Millisecond)
	pruned(t, ctx, c, client.PruneAll)
	require.NotEmpty(t, usage(t, ctx, c, "immutable,description~="+id))
	require.NoError(t, <-done)
}

func TestRefusedEntitlement(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	st := root.Run(sh("true # "+unique()), llb.Security(llb.SecurityModeInsecure)).Root()
	_, _, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
	require.ErrorContains(t, err, "security.insecure is not allowed")
	opt := client.SolveOpt{
		LocalMounts:         mounts,
		AllowedEntitlements: []string{entitlements.EntitlementSecurityInsecure.String()},
	}
	_, _, err = solveState(t, ctx, c, st, opt)
	if err != nil {
		// The daemon has to allow it as well.
		require.ErrorContains(t, err, "granting entitlement security.insecure is not allowed by build daemon configuration")
	}
}
