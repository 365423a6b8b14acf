package sts

//go:generate go run ../../aws/model/gen -model ../../aws/model/sts.json -package sts -o operations_gen.go
