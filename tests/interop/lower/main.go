// Command lower measures how fast the official library converts a Dockerfile: the other column of the table that
// `cargo run --release -p dockerfile --example lower` prints.
//
// It takes the Dockerfile and a number of rounds, and prints the best and the median time of each phase in nanoseconds.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// images answers at once: what is measured is the conversion.
type images struct{ config []byte }

func (i images) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, digest.FromString(ref), i.config, nil
}

func run() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: lower DOCKERFILE ROUNDS")
	}
	data, err := os.ReadFile(os.Args[1])
	if err != nil {
		return err
	}
	rounds, err := strconv.Atoi(os.Args[2])
	if err != nil {
		return err
	}
	platform := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	config, err := json.Marshal(ocispecs.Image{
		Platform: platform,
		Config:   ocispecs.ImageConfig{Env: []string{"PATH=/usr/bin:/bin"}},
		RootFS:   ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromString("layer")}},
	})
	if err != nil {
		return err
	}
	caps := pb.Caps.CapSet(pb.Caps.All())
	var convert, write, whole []time.Duration
	ops := 0
	ctx := context.Background()
	for range rounds {
		start := time.Now()
		opt := dockerfile2llb.ConvertOpt{MetaResolver: images{config}, LLBCaps: &caps, TargetPlatform: &platform}
		opt.SourceMap = llb.NewSourceMap(nil, "Dockerfile", "Dockerfile", data)
		result, err := dockerfile2llb.Dockerfile2LLB(ctx, data, opt)
		if err != nil {
			return err
		}
		middle := time.Now()
		definition, err := result.State.Marshal(ctx)
		if err != nil {
			return err
		}
		end := time.Now()
		ops = len(definition.Def)
		convert, write, whole = append(convert, middle.Sub(start)), append(write, end.Sub(middle)), append(whole, end.Sub(start))
	}
	median := func(list []time.Duration) int64 {
		slices.Sort(list)
		return list[len(list)/2].Nanoseconds()
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"ops":     ops,
		"convert": []int64{slices.Min(convert).Nanoseconds(), median(convert)},
		"write":   []int64{slices.Min(write).Nanoseconds(), median(write)},
		"whole":   []int64{slices.Min(whole).Nanoseconds(), median(whole)},
	})
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "lower:", err)
		os.Exit(1)
	}
}
