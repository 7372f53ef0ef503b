package interop

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// The documents between an image's name and the statements about it are handed out on request.
func TestAttestationChain(t *testing.T) {
	ctx, c := daemon(t)
	name := registry(t) + "/interop/chain:" + unique()
	opt := imageBuild(t)
	opt.FrontendAttrs["attest:provenance"] = "mode=min,version=v1"
	opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": name, "push": "true"}}}
	resp, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	root := digest.Digest(resp.ExporterResponse["containerimage.digest"])

	const provenance = "https://slsa.dev/provenance/v1"
	resolve := func(types ...string) *sourceresolver.AttestationChain {
		var chain *sourceresolver.AttestationChain
		_, err := c.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
			md, err := gw.ResolveSourceMetadata(ctx, &pb.SourceOp{Identifier: "docker-image://" + name}, sourceresolver.Opt{
				ImageOpt: &sourceresolver.ResolveImageOpt{
					NoConfig:            true,
					AttestationChain:    true,
					ResolveAttestations: types,
					Platform:            &ocispecs.Platform{OS: "linux", Architecture: "amd64"},
					ResolveMode:         llb.ResolveModeForcePull.String(),
				},
			})
			if err != nil {
				return nil, err
			}
			require.Equal(t, root, md.Image.Digest)
			require.Empty(t, md.Image.Config)
			chain = md.Image.AttestationChain
			return nil, nil
		}, nil)
		require.NoError(t, err)
		require.NotNil(t, chain)
		for dgst, blob := range chain.Blobs {
			require.Equal(t, dgst, digest.FromBytes(blob.Data))
			require.Equal(t, dgst, blob.Descriptor.Digest)
			require.Equal(t, int64(len(blob.Data)), blob.Descriptor.Size)
		}
		return chain
	}
	chain := resolve()
	require.Equal(t, root, chain.Root)
	require.Empty(t, chain.SignatureManifests)
	require.Len(t, chain.Blobs, 2)
	require.NotContains(t, chain.Blobs, chain.ImageManifest)
	var index ocispecs.Index
	require.NoError(t, json.Unmarshal(chain.Blobs[root].Data, &index))
	require.Equal(t, index.Manifests[0].Digest, chain.ImageManifest)
	require.Equal(t, index.Manifests[1].Digest, chain.AttestationManifest)
	require.Equal(t, "attestation-manifest", chain.Blobs[chain.AttestationManifest].Descriptor.Annotations["vnd.docker.reference.type"])

	require.Len(t, resolve("https://example.com/other").Blobs, 2)
	chain = resolve(provenance)
	require.Len(t, chain.Blobs, 3)
	var manifest ocispecs.Manifest
	require.NoError(t, json.Unmarshal(chain.Blobs[chain.AttestationManifest].Data, &manifest))
	var s statement
	require.NoError(t, json.Unmarshal(chain.Blobs[manifest.Layers[0].Digest].Data, &s))
	require.Equal(t, provenance, s.PredicateType)
	require.Equal(t, chain.ImageManifest.Encoded(), s.Subject[0].Digest["sha256"])
}
