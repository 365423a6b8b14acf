package sts

//go:generate go run ../../aws/model/gen -model ../../aws/model/sts.json -package sts -operations GetCallerIdentity,AssumeRole,GetSessionToken -o shapes_gen.go
