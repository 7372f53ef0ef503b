package interop

import (
	"context"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/exporter"
	"github.com/moby/buildkit/session/exporter/exporterprovider"
	"github.com/moby/buildkit/session/filesync"
	"github.com/stretchr/testify/require"
)

// A client may look at the result before it says where it goes.
func TestExportersChosenAfterTheBuild(t *testing.T) {
	ctx, c := daemon(t)
	id := identity.NewID()
	var out buffer
	target := filesync.NewFSSyncTarget()
	choose := exporterprovider.New(func(ctx context.Context, md map[string][]byte, refs []string) ([]*exporter.ExporterRequest, error) {
		require.Len(t, refs, 1)
		require.Equal(t, "seen", string(md["frontend.note"]))
		entries, err := c.GatewayClientForBuild(id).ReadDir(ctx, &gatewaypb.ReadDirRequest{Ref: refs[0], DirPath: "/"})
		if err != nil {
			return nil, err
		}
		require.Len(t, entries.Entries, 1)
		target.Add(filesync.WithFSSync(0, toBuffer(&out)))
		return []*exporter.ExporterRequest{{Type: entries.Entries[0].Path}}, nil
	})
	opt := client.SolveOpt{EnableSessionExporter: true, Ref: id, Session: []session.Attachable{target, choose}}
	_, err := c.Build(ctx, opt, "", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		res, err := gw.Solve(ctx, request(t, ctx, llb.Scratch().File(llb.Mkfile("/tar", 0o600, nil))))
		if err == nil {
			res.AddMeta("frontend.note", []byte("seen"))
		}
		return res, err
	}, nil)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	require.Contains(t, files, "tar")

	// Without anybody to ask, the request's own exporters are all.
	opt = client.SolveOpt{EnableSessionExporter: true, Ref: identity.NewID()}
	dir := into(t, &opt)
	st, err := llb.Scratch().File(llb.Mkfile("/f", 0o600, []byte("x"))).Marshal(ctx)
	require.NoError(t, err)
	_, err = c.Solve(ctx, st, opt, nil)
	require.NoError(t, err)
	require.Equal(t, "x", read(t, dir, "f"))
}
