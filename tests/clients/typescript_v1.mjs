// The TypeScript SDK 1.x client on stdio: handshake, every list, a call, an error, a resource, a prompt, a completion.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";

const [command, cwd] = process.argv.slice(2);
const client = new Client({ name: "typescript-v1", version: "0" });
await client.connect(new StdioClientTransport({ command, args: [], cwd, env: process.env }));
const { tools } = await client.listTools();
const { prompts } = await client.listPrompts();
const { resourceTemplates } = await client.listResourceTemplates();
const called = await client.callTool({ name: "list_strategies", arguments: { limit: 2 } });
const refused = await client.callTool({ name: "merge_status", arguments: { job_id: "no-such-job" } });
const read = await client.readResource({ uri: "merge://strategies/ties" });
const prompt = await client.getPrompt({ name: "plan_merge", arguments: { sources: "./a, ./b" } });
const completed = await client.complete({
  ref: { type: "ref/resource", uri: "merge://strategies/{id}" },
  argument: { name: "id", value: "tas" },
});
console.log(
  JSON.stringify({
    tools: tools.length,
    prompts: prompts.map((p) => p.name).sort(),
    templates: resourceTemplates.length,
    strategies: called.structuredContent.strategies.length,
    refused: refused.isError === true && refused.content[0].text.includes("no-such-job"),
    resource: read.contents[0].text.startsWith("id: ties"),
    prompt: prompt.messages.length,
    completed: completed.completion.values,
  }),
);
await client.close();
