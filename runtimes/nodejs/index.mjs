// The script that Node.js is given. The client itself is CommonJS, which starts faster.
import { createRequire } from 'node:module';
createRequire(import.meta.url)('./lambdad_runtime.cjs').main();
