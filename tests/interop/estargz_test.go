package interop

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// The format's own library reads what the daemon writes, and every piece has the digest it says.
func TestExportEstargz(t *testing.T) {
	ctx, c := daemon(t)
	opt := imageBuild(t)
	var out buffer
	opt.Exports = []client.ExportEntry{{
		Type:   client.ExporterOCI,
		Attrs:  map[string]string{"compression": "estargz", "force-compression": "true"},
		Output: toBuffer(&out),
	}}
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	files, _ := untar(t, &out)
	manifest, config := layout(t, files)
	found := map[string]string{}
	for i, layer := range manifest.Layers {
		blob := files["blobs/sha256/"+layer.Digest.Encoded()]
		whole, err := gzip.NewReader(bytes.NewReader(blob))
		require.NoError(t, err)
		all, err := io.ReadAll(whole)
		require.NoError(t, err)
		require.Equal(t, config.RootFS.DiffIDs[i], digest.FromBytes(all))
		reader, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
		require.NoError(t, err)
		verifier, err := reader.VerifyTOC(digest.Digest(layer.Annotations[estargz.TOCJSONDigestAnnotation]))
		require.NoError(t, err)
		for _, name := range []string{"f", "bin/busybox"} {
			entry, ok := reader.Lookup(name)
			if !ok {
				continue
			}
			file, err := reader.OpenFile(name)
			require.NoError(t, err)
			data, err := io.ReadAll(file)
			require.NoError(t, err)
			require.Equal(t, entry.Digest, digest.FromBytes(data).String())
			chunk, ok := reader.ChunkEntryForOffset(name, 0)
			require.True(t, ok)
			check, err := verifier.Verifier(chunk)
			require.NoError(t, err)
			_, err = check.Write(data[:chunk.ChunkSize])
			require.NoError(t, err)
			require.True(t, check.Verified())
			found[name] = string(data)
		}
	}
	require.Equal(t, "file", found["f"])
	require.Contains(t, found, "bin/busybox")
}
