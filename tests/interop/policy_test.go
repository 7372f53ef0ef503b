package interop

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	policypb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func files(t *testing.T) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.URL.Path))
	}))
	t.Cleanup(srv.Close)
	return srv
}

func rule(action policypb.PolicyAction, kind policypb.MatchType, identifier string, update *policypb.Update) *policypb.Rule {
	return &policypb.Rule{Action: action, Selector: &policypb.Selector{Identifier: identifier, MatchType: kind}, Updates: update}
}

func TestSourcePolicyRules(t *testing.T) {
	ctx, c := daemon(t)
	srv := files(t)
	path := "/" + unique()
	st := llb.HTTP(srv.URL+path, llb.Filename("f"))
	opt := client.SolveOpt{SourcePolicy: &policypb.Policy{Rules: []*policypb.Rule{
		rule(policypb.PolicyAction_DENY, policypb.MatchType_WILDCARD, srv.URL+"/*", nil),
	}}}
	_, _, err := solveState(t, ctx, c, st, opt)
	require.ErrorContains(t, err, "denied by policy")

	// The last word counts.
	opt.SourcePolicy.Rules = append(opt.SourcePolicy.Rules,
		rule(policypb.PolicyAction_ALLOW, policypb.MatchType_EXACT, srv.URL+path, nil))
	dir := into(t, &opt)
	_, _, err = solveState(t, ctx, c, st, opt)
	require.NoError(t, err)
	require.Equal(t, path, read(t, dir, "f"))

	opt = client.SolveOpt{SourcePolicy: &policypb.Policy{Rules: []*policypb.Rule{
		rule(policypb.PolicyAction_CONVERT, policypb.MatchType_REGEX, "^(.*)"+path+"$", &policypb.Update{Identifier: "${1}/other"}),
		rule(policypb.PolicyAction_CONVERT, policypb.MatchType_EXACT, srv.URL+"/other", &policypb.Update{
			Attrs: map[string]string{"http.perm": "0640"},
		}),
	}}}
	dir = into(t, &opt)
	// What depends on a replaced source is found under the new name.
	_, _, err = solveState(t, ctx, c, llb.Scratch().File(llb.Copy(st, "f", "/g")), opt)
	require.NoError(t, err)
	require.Equal(t, "/other", read(t, dir, "g"))

	opt = client.SolveOpt{SourcePolicy: &policypb.Policy{Rules: []*policypb.Rule{
		rule(policypb.PolicyAction_CONVERT, policypb.MatchType_EXACT, srv.URL+path, &policypb.Update{
			Attrs: map[string]string{"http.checksum": digest.FromString("other").String()},
		}),
	}}}
	_, _, err = solveState(t, ctx, c, st, opt)
	require.ErrorContains(t, err, "digest mismatch")
}

func TestSourcePolicyOfDockerfile(t *testing.T) {
	ctx, c := daemon(t)
	opt := dockerfile(t, "FROM example.invalid/some/image:1\n", nil)
	opt.SourcePolicy = &policypb.Policy{Rules: []*policypb.Rule{
		rule(policypb.PolicyAction_DENY, policypb.MatchType_WILDCARD, "docker-image://example.invalid/*", nil),
	}}
	_, _, err := solveClient(ctx, c, opt)
	require.ErrorContains(t, err, `source "docker-image://example.invalid/some/image:1" denied by policy`)
}

func TestSourcePolicyOfRequest(t *testing.T) {
	ctx, c := daemon(t)
	srv := files(t)
	def, err := llb.HTTP(srv.URL+"/"+unique()).Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	deny := []*policypb.Policy{{Rules: []*policypb.Rule{
		rule(policypb.PolicyAction_DENY, policypb.MatchType_WILDCARD, "http://*", nil),
	}}}
	_, err = c.Build(ctx, client.SolveOpt{}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		_, err := gw.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), SourcePolicies: deny, Evaluate: true})
		require.ErrorContains(t, err, "denied by policy")
		_, err = gw.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: srv.URL + "/x"}, sourceresolver.Opt{SourcePolicies: deny})
		require.ErrorContains(t, err, "denied by policy")
		return gw.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	}, nil)
	require.NoError(t, err)
}

func TestSourcePolicySession(t *testing.T) {
	ctx, c := daemon(t)
	srv := files(t)
	path := "/" + unique()
	var asked []string
	provider := policysession.NewPolicyProvider(func(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.DecisionResponse, *gatewaypb.ResolveSourceMetaRequest, error) {
		src := req.Source.Source
		asked = append(asked, src.Identifier)
		switch {
		case src.Identifier == srv.URL+path && req.Source.HTTP == nil:
			return nil, &gatewaypb.ResolveSourceMetaRequest{Source: src}, nil
		case src.Identifier == srv.URL+path:
			require.Equal(t, digest.FromString(path).String(), req.Source.HTTP.Checksum)
			return &policysession.DecisionResponse{Action: policypb.PolicyAction_CONVERT, Update: &pb.SourceOp{Identifier: srv.URL + "/good", Attrs: src.Attrs}}, nil, nil
		case src.Identifier == srv.URL+"/good":
			return &policysession.DecisionResponse{Action: policypb.PolicyAction_ALLOW}, nil, nil
		}
		return &policysession.DecisionResponse{Action: policypb.PolicyAction_DENY, DenyMessages: []*policysession.DenyMessage{{Message: "not this one"}}}, nil, nil
	})
	opt := client.SolveOpt{SourcePolicyProvider: provider}
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, llb.HTTP(srv.URL+path, llb.Filename("f")), opt)
	require.NoError(t, err)
	require.Equal(t, "/good", read(t, dir, "f"))
	require.Len(t, asked, 3)

	_, _, err = solveState(t, ctx, c, llb.HTTP(srv.URL+"/bad"), client.SolveOpt{SourcePolicyProvider: provider})
	require.ErrorContains(t, err, "not allowed by policy")
	require.NotEmpty(t, policysession.DenyMessages(err))
}

func TestHTTPChecksumRequest(t *testing.T) {
	ctx, c := daemon(t)
	srv := files(t)
	path := "/" + unique()
	_, err := c.Build(ctx, client.SolveOpt{}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		resp, err := gw.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: srv.URL + path}, sourceresolver.Opt{
			HTTPOpt: &sourceresolver.ResolveHTTPOpt{ChecksumReq: &sourceresolver.ResolveHTTPChecksumRequest{
				Algo: sourceresolver.ResolveHTTPChecksumAlgoSHA512, Suffix: []byte("tail"),
			}},
		})
		require.NoError(t, err)
		require.Equal(t, digest.FromString(path), resp.HTTP.Digest)
		require.Equal(t, digest.SHA512.FromString(path+"tail").String(), resp.HTTP.ChecksumResponse.Digest)
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
}
