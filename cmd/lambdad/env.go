package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/lambdad/lambdad/datadir"
)

// envCommand prints the lines that point AWS clients in this shell at a server.
func envCommand(_ context.Context, std stdio, args []string) error {
	fs := newFlags(std, "env")
	dataDir := fs.String("data-dir", defaultDataDir(), "`directory` of the server")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	lines, err := exports(*dataDir)
	if err != nil {
		return err
	}
	for _, l := range lines {
		fmt.Fprintln(std.out, l)
	}
	return nil
}

// exports reads what a server wrote about itself into shell lines.
func exports(dataDir string) ([]string, error) {
	info, err := datadir.Lookup(dataDir)
	if err != nil {
		return nil, err
	}
	key, err := administrator(dataDir)
	if err != nil {
		return nil, err
	}
	return []string{
		"export AWS_ENDPOINT_URL=" + info.Endpoint,
		"export AWS_REGION=" + info.Region,
		"export AWS_DEFAULT_REGION=" + info.Region,
		"export AWS_ACCESS_KEY_ID=" + key.AccessKeyID,
		"export AWS_SECRET_ACCESS_KEY=" + key.SecretAccessKey,
		"export AWS_EC2_METADATA_DISABLED=true",
	}, nil
}

// A key is what signs the requests of the administrator.
type key struct {
	AccessKeyID     string `json:"accessKeyId"`
	SecretAccessKey string `json:"secretAccessKey"`
}

// administrator reads the administrator's key of a data directory.
func administrator(dataDir string) (k key, err error) {
	file := datadir.CredentialsFile(dataDir)
	data, err := os.ReadFile(file)
	if err != nil {
		return k, fmt.Errorf("reading the administrator key: %w", err)
	}
	if err := json.Unmarshal(data, &k); err != nil {
		return k, fmt.Errorf("reading the administrator key in %s: %w", file, err)
	}
	return k, nil
}
